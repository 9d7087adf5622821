-- The occupied cells of the co-occurrence table: what `hf_plr.refinement.cooccurrence` counts.
-- previous_labels and current_labels have one row per sample: index, and label (-1 = noise).
SELECT previous_labels.label AS previous_label,
       current_labels.label AS current_label,
       count(*) AS samples,
       min(current_labels.index) AS first_member
FROM previous_labels
JOIN current_labels ON previous_labels.index = current_labels.index
GROUP BY previous_labels.label, current_labels.label
