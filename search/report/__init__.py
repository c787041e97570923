"""The page of bpb against bytes and its figures."""
