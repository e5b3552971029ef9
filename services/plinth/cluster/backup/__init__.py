"""Backup and restore of a whole installation: Redis state, artifacts, checkpoints of open jobs.

A backup is made in this order, and the order is what makes it consistent:

1. Redis, at one instant (`freeze.py` holds its writers for the moment of reading).
2. The newest checkpoint of each open job (`checkpoints.py`). A job that ended since has published.
3. The store's records, those that name artifacts before those that make them (`store_look.py`).
4. The content of the artifacts, which never changes.
5. The manifest, created exclusively: from then on there is a backup (`archive.py`).

Artifacts are only ever added, so what Redis names at 1 is there at 3. What is restored is what
a power cut at 1 would have left, and every stage takes up its work from such a state: leases are
given back, steps and jobs go on under their ids, and what the store has already is not made again.

A restore goes the other way: contents, then records, then Redis. Older backups go, where that is
asked for, once the new one was read back (`pruning.py`). Secrets are no part of a backup:
it holds the hashes of API keys (with which they can be checked and not used), and none of what
lies in the data directory's `secrets` folder.
"""
