"""What a teacher says of each augmented sample, stored."""
