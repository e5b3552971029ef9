"""Uploads a folder as an artifact, and downloads it again, with plinth.client:
python transfer.py FOLDER ARTIFACT_ID DESTINATION

Stopped half-way and started again, it goes on where it was.
"""

import sys

from plinth.client import Client

if len(sys.argv) != 4:
    sys.exit(__doc__)
folder, artifact_id, destination = sys.argv[1:]
with Client() as plinth:
    made = plinth.upload(folder, artifact_id)
    print(made.name, made.digest)
    plinth.download(made.name, destination)
