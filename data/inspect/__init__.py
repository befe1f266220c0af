"""What a data set holds, for people to look at: counts, copies, doubtful labels. Training does not need it."""
