"""What is learnt from a data set, and the error that it is judged by."""
