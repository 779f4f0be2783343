"""Store in a folder of LMDB files, for the processes of one machine."""
