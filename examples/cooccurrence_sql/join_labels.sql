-- The refined label of every sample is that of its cell. refined_cells is small and joined by broadcast.
SELECT current_labels.index AS index,
       refined_cells.label AS label,
       current_labels.label AS current_label,
       refined_cells.confidence AS confidence
FROM previous_labels
JOIN current_labels ON previous_labels.index = current_labels.index
JOIN refined_cells ON refined_cells.previous_label = previous_labels.label
                  AND refined_cells.current_label = current_labels.label
