"""What several rooms of this package use: whole files, failpoints, progress, threads, the processor, a heap."""
