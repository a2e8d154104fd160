"""One file a revision, named NNNN_subject.py."""
