"""Rows for artifacts and deployments."""

from __future__ import annotations

import hashlib

from api_rows import OTHER, Call, kept
from plinth.v1 import artifacts_pb2 as art
from plinth.v1 import deployments_pb2 as dep

_TEXT = b"a text"
_TEXT_DIGEST = f"sha256:{hashlib.sha256(_TEXT).hexdigest()}"


def _upload(name: str) -> art.CreateUploadRequest:
    files = [art.UploadFile(path="a.txt", size_bytes=len(_TEXT))]
    spec = art.UploadSpec(artifact_id=name, kind=art.ARTIFACT_KIND_FILES, files=files)
    return art.CreateUploadRequest(upload=art.Upload(spec=spec))


ARTIFACTS = [
    Call(
        "ArtifactService.CreateUpload",
        lambda _, who: _upload(f"of-{who}"),
        note=kept("upload", lambda answer: answer.upload.name),
    ),
    Call("ArtifactService.GetUpload", lambda world, _: art.GetUploadRequest(name=world["upload"])),
    Call("ArtifactService.ListUploads", lambda *_: art.ListUploadsRequest()),
    Call(
        "ArtifactService.WriteUpload",
        lambda world, _: art.WriteUploadRequest(name=world["upload"], path="a.txt", data=_TEXT),
        OTHER,
    ),
    Call(
        "ArtifactService.FinishUpload",
        lambda world, _: art.FinishUploadRequest(
            name=world["upload"], digests={"a.txt": _TEXT_DIGEST}
        ),
        OTHER,
        note=kept("artifact", lambda answer: answer.artifact.name),
    ),
    Call(
        "ArtifactService.DeleteUpload",
        lambda world, _: art.DeleteUploadRequest(name=world["upload"]),
        OTHER,
    ),
    Call(
        "ArtifactService.GetArtifact",
        lambda world, _: art.GetArtifactRequest(name=world["artifact"]),
    ),
    Call("ArtifactService.ListArtifacts", lambda *_: art.ListArtifactsRequest()),
    Call(
        "ArtifactService.ListArtifactVersions",
        lambda *_: art.ListArtifactVersionsRequest(name="artifacts/of-acme"),
    ),
    Call(
        "ArtifactService.ListArtifactFiles",
        lambda world, _: art.ListArtifactFilesRequest(parent=world["artifact"]),
    ),
    Call(
        "ArtifactService.DownloadArtifact",
        lambda world, _: art.DownloadArtifactRequest(name=world["artifact"], path="a.txt"),
    ),
    Call(
        "ArtifactService.SetAlias",
        lambda world, _: art.SetAliasRequest(
            alias=art.Alias(name="artifacts/of-acme:prod", artifact=world["artifact"])
        ),
        OTHER,
    ),
    Call(
        "ArtifactService.GetAlias",
        lambda *_: art.GetAliasRequest(name="artifacts/of-acme:prod"),
    ),
    Call(
        "ArtifactService.ListAliases",
        lambda *_: art.ListAliasesRequest(parent="artifacts/of-acme"),
    ),
    Call(
        "ArtifactService.DeleteAlias",
        lambda *_: art.DeleteAliasRequest(name="artifacts/of-acme:prod"),
        OTHER,
    ),
    Call(
        "ArtifactService.DeleteArtifact",
        lambda world, _: art.DeleteArtifactRequest(name=world["artifact"]),
        OTHER,
    ),
]


def _deployment(shards: int) -> dep.Deployment:
    spec = dep.DeploymentSpec(artifact="m@1", shards=shards)
    return dep.Deployment(name="deployments/of-acme", spec=spec)


DEPLOYMENTS = [
    Call(
        "DeploymentService.CreateDeployment",
        lambda _, who: dep.CreateDeploymentRequest(
            deployment_id=f"of-{who}", deployment=dep.Deployment(spec=_deployment(1).spec)
        ),
    ),
    Call(
        "DeploymentService.GetDeployment",
        lambda *_: dep.GetDeploymentRequest(name="deployments/of-acme"),
    ),
    Call("DeploymentService.ListDeployments", lambda *_: dep.ListDeploymentsRequest()),
    Call(
        "DeploymentService.UpdateDeployment",
        lambda *_: dep.UpdateDeploymentRequest(deployment=_deployment(2)),
        OTHER,
    ),
    # There is no canary to judge, nor anything that either of them asked.
    Call(
        "DeploymentService.ReportOutcome",
        lambda *_: dep.ReportOutcomeRequest(name="deployments/of-acme", response_id="r", good=True),
        "ANSWER_NOT_FOUND",
        "ANSWER_NOT_FOUND",
    ),
    Call(
        "DeploymentService.DeleteDeployment",
        lambda *_: dep.DeleteDeploymentRequest(name="deployments/of-acme"),
        OTHER,
    ),
]
