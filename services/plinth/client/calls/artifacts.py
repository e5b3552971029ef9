"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import artifacts_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_GET_ARTIFACT = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "GetArtifact")
_LIST_ARTIFACTS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListArtifacts")
_LIST_ARTIFACT_VERSIONS = Method.of(
    artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListArtifactVersions"
)
_LIST_ARTIFACT_FILES = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListArtifactFiles")
_DOWNLOAD_ARTIFACT = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "DownloadArtifact")
_DELETE_ARTIFACT = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "DeleteArtifact")
_GET_ALIAS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "GetAlias")
_LIST_ALIASES = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListAliases")
_SET_ALIAS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "SetAlias")
_DELETE_ALIAS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "DeleteAlias")
_CREATE_UPLOAD = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "CreateUpload")
_GET_UPLOAD = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "GetUpload")
_LIST_UPLOADS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListUploads")
_WRITE_UPLOAD = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "WriteUpload")
_FINISH_UPLOAD = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "FinishUpload")
_DELETE_UPLOAD = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "DeleteUpload")


class ArtifactService:
    """Artifacts: immutable, versioned folders of files; aliases that name one version; uploads
    that become artifacts; downloads.

    A version's resource name is "artifacts/chat@7". Requests that read also take
    "artifacts/chat:prod" (the version that an alias names) and "artifacts/chat" (the latest
    version). Where a specification refers to an artifact (a pipeline, TrainSpec.init_from,
    DeploymentSpec.artifact), it says what comes behind "artifacts/": "chat@7", "chat:prod" or
    "chat".
    """

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def get_artifact(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        """One version. NOT_FOUND if there is no such name, version or alias.

        name: "artifacts/chat@7", "artifacts/chat:prod", or "artifacts/chat" for the latest
          version.
        """
        response: artifacts_pb2.GetArtifactResponse = self._calls.unary(
            _GET_ARTIFACT, request(artifacts_pb2.GetArtifactRequest, name=name), timeout, metadata
        )
        return response.artifact

    def list_artifacts(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        view: artifacts_pb2.ArtifactView.ValueType | None | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[artifacts_pb2.Artifact, artifacts_pb2.ListArtifactsResponse]:
        """All versions of all artifacts, by artifact_id, each one's newest version first.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000; with ARTIFACT_VIEW_FULL,
          more than 50 are 50.
        filter: Comparisons joined by AND: `kind = MODEL AND artifact_id = "chat*"`. Of name,
          artifact_id, version, kind, digest, create_time, owner.tenant, owner.key_id, and
          `aliases:prod`.
        view: How much of each to tell.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_ARTIFACTS, asked, timeout, metadata),
            request(
                artifacts_pb2.ListArtifactsRequest, page_size=page_size, filter=filter, view=view
            ),
            "artifacts",
        )

    def list_artifact_versions(
        self,
        name: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[artifacts_pb2.Artifact, artifacts_pb2.ListArtifactVersionsResponse]:
        """The versions of one artifact, newest first. NOT_FOUND if there are none.

        name: "artifacts/chat".
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_ARTIFACT_VERSIONS, asked, timeout, metadata),
            request(artifacts_pb2.ListArtifactVersionsRequest, name=name, page_size=page_size),
            "artifacts",
        )

    def list_artifact_files(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[artifacts_pb2.ArtifactFile, artifacts_pb2.ListArtifactFilesResponse]:
        """The files of one version, by path.

        parent: The version whose files these are, as in GetArtifactRequest.
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_ARTIFACT_FILES, asked, timeout, metadata),
            request(artifacts_pb2.ListArtifactFilesRequest, parent=parent, page_size=page_size),
            "files",
        )

    def download_artifact(
        self,
        name: str = "",
        *,
        path: str = "",
        offset: int = 0,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[artifacts_pb2.DownloadArtifactResponse, None, None]:
        """One file's bytes, in pieces of at most 1 MiB, from any offset. DATA_LOSS if the file on
        the store is shorter than what was published; NOT_FOUND if the version is deleted
        meanwhile. Compare what has come with ArtifactFile.digest.

        name: As in GetArtifactRequest. Name a version, so that a download that goes on later is
          of the same.
        path: ArtifactFile.path, or "manifest.json".
        offset: The first byte to send; at most the file's size.
        resume_token: Of the last response of a stream that broke: goes on behind it. Stands for
          `offset`.
        """
        return self._calls.stream(
            _DOWNLOAD_ARTIFACT,
            request(
                artifacts_pb2.DownloadArtifactRequest,
                name=name,
                path=path,
                offset=offset,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    def delete_artifact(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Deletes one version; its number is not given again. FAILED_PRECONDITION
        (ARTIFACT_IN_USE), which names them, while an alias, a deployment, an artifact that was
        made from it, or a run or job that has not ended points there.

        name: "artifacts/chat@7". Aliases and names without a version are refused.
        """
        self._calls.unary(
            _DELETE_ARTIFACT,
            request(artifacts_pb2.DeleteArtifactRequest, name=name),
            timeout,
            metadata,
        )

    def get_alias(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Alias:
        """One alias and its etag. NOT_FOUND if there is none of that name.

        name: "artifacts/chat:prod".
        """
        response: artifacts_pb2.GetAliasResponse = self._calls.unary(
            _GET_ALIAS, request(artifacts_pb2.GetAliasRequest, name=name), timeout, metadata
        )
        return response.alias

    def list_aliases(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[artifacts_pb2.Alias, artifacts_pb2.ListAliasesResponse]:
        """The aliases of one artifact, by name.

        parent: "artifacts/chat".
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_ALIASES, asked, timeout, metadata),
            request(artifacts_pb2.ListAliasesRequest, parent=parent, page_size=page_size),
            "aliases",
        )

    def set_alias(
        self,
        alias: artifacts_pb2.Alias | None = None,
        *,
        create_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Alias:
        """Makes an alias, or moves it. ABORTED (ETAG_MISMATCH) if an etag is given and it has
        moved since; ALREADY_EXISTS (ALIAS_EXISTS) if it was only to be made and is there;
        NOT_FOUND, and it stays where it was, if the version is deleted at the same time.

        alias: Its name and artifact; its etag, if it may only be moved from what was read.
        create_only: Only if there is no alias of that name yet, or it names this version
          already. Not with an etag.
        """
        response: artifacts_pb2.SetAliasResponse = self._calls.unary(
            _SET_ALIAS,
            request(artifacts_pb2.SetAliasRequest, alias=alias, create_only=create_only),
            timeout,
            metadata,
        )
        return response.alias

    def delete_alias(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes an alias; what it named stays. ABORTED (ETAG_MISMATCH) as in SetAlias.

        name: "artifacts/chat:prod".
        etag: Alias.etag: only if it has not moved since. Empty: in any case.
        """
        self._calls.unary(
            _DELETE_ALIAS,
            request(artifacts_pb2.DeleteAliasRequest, name=name, etag=etag),
            timeout,
            metadata,
        )

    def create_upload(
        self,
        upload: artifacts_pb2.Upload | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Upload:
        """Begins an upload: says which files will come, and of which sizes. PERMISSION_DENIED
        (OTHER_TENANT) if the artifact's latest version is another tenant's; RESOURCE_EXHAUSTED
        (TOO_MANY_UPLOADS) if the tenant has 20 unfinished uploads.

        upload: What will come. The other fields are the platform's to set.
        request_id: The caller's own, 1 to 128 of A-Z a-z 0-9 . _ : -. The same id and
          specification, sent again by the same tenant, give the upload that was made; another
          specification is ALREADY_EXISTS. Empty: each call makes one.
        """
        response: artifacts_pb2.CreateUploadResponse = self._calls.unary(
            _CREATE_UPLOAD,
            request(artifacts_pb2.CreateUploadRequest, upload=upload, request_id=request_id),
            timeout,
            metadata,
        )
        return response.upload

    def get_upload(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Upload:
        """An upload and how far each of its files has come.

        name: "uploads/3f2a…".
        """
        response: artifacts_pb2.GetUploadResponse = self._calls.unary(
            _GET_UPLOAD, request(artifacts_pb2.GetUploadRequest, name=name), timeout, metadata
        )
        return response.upload

    def list_uploads(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[artifacts_pb2.Upload, artifacts_pb2.ListUploadsResponse]:
        """All uploads, by name, without their files.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_UPLOADS, asked, timeout, metadata),
            request(artifacts_pb2.ListUploadsRequest, page_size=page_size),
            "uploads",
        )

    def write_upload(
        self,
        name: str = "",
        *,
        path: str = "",
        offset: int = 0,
        data: bytes = b"",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """One piece of one file. Pieces may come in any order, several at once, and again:
        ALREADY_EXISTS (PIECE_DIFFERS) only if another content was sent for the same place.

        name: "uploads/3f2a…".
        path: UploadFile.path.
        offset: Where in the file the piece begins: a multiple of Upload.piece_bytes.
        data: Upload.piece_bytes bytes, or what the file has from there if that is less.
        """
        self._calls.unary(
            _WRITE_UPLOAD,
            request(
                artifacts_pb2.WriteUploadRequest, name=name, path=path, offset=offset, data=data
            ),
            timeout,
            metadata,
        )

    def finish_upload(
        self,
        name: str = "",
        *,
        digests: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        """Publishes what was uploaded as the next version of UploadSpec.artifact_id.
        FAILED_PRECONDITION (UPLOAD_INCOMPLETE) says which pieces are missing; INVALID_ARGUMENT
        (DIGEST_MISMATCH) which file has another digest; PERMISSION_DENIED (OTHER_TENANT) is for
        a name that became another tenant's meanwhile. Again: gives the artifact that it made.

        name: "uploads/3f2a…".
        digests: Of each file, "sha256:<hex>" by its path: what was sent has to be what was
          meant.
        """
        response: artifacts_pb2.FinishUploadResponse = self._calls.unary(
            _FINISH_UPLOAD,
            request(artifacts_pb2.FinishUploadRequest, name=name, digests=digests),
            timeout,
            metadata,
        )
        return response.artifact

    def delete_upload(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Gives an upload up, and removes what has come. An artifact that it became stays.

        name: "uploads/3f2a…".
        """
        self._calls.unary(
            _DELETE_UPLOAD, request(artifacts_pb2.DeleteUploadRequest, name=name), timeout, metadata
        )


class AsyncArtifactService:
    """Artifacts: immutable, versioned folders of files; aliases that name one version; uploads
    that become artifacts; downloads.

    A version's resource name is "artifacts/chat@7". Requests that read also take
    "artifacts/chat:prod" (the version that an alias names) and "artifacts/chat" (the latest
    version). Where a specification refers to an artifact (a pipeline, TrainSpec.init_from,
    DeploymentSpec.artifact), it says what comes behind "artifacts/": "chat@7", "chat:prod" or
    "chat".
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def get_artifact(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        """One version. NOT_FOUND if there is no such name, version or alias.

        name: "artifacts/chat@7", "artifacts/chat:prod", or "artifacts/chat" for the latest
          version.
        """
        response: artifacts_pb2.GetArtifactResponse = await self._calls.unary(
            _GET_ARTIFACT, request(artifacts_pb2.GetArtifactRequest, name=name), timeout, metadata
        )
        return response.artifact

    def list_artifacts(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        view: artifacts_pb2.ArtifactView.ValueType | None | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[artifacts_pb2.Artifact, artifacts_pb2.ListArtifactsResponse]:
        """All versions of all artifacts, by artifact_id, each one's newest version first.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000; with ARTIFACT_VIEW_FULL,
          more than 50 are 50.
        filter: Comparisons joined by AND: `kind = MODEL AND artifact_id = "chat*"`. Of name,
          artifact_id, version, kind, digest, create_time, owner.tenant, owner.key_id, and
          `aliases:prod`.
        view: How much of each to tell.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_ARTIFACTS, asked, timeout, metadata),
            request(
                artifacts_pb2.ListArtifactsRequest, page_size=page_size, filter=filter, view=view
            ),
            "artifacts",
        )

    def list_artifact_versions(
        self,
        name: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[artifacts_pb2.Artifact, artifacts_pb2.ListArtifactVersionsResponse]:
        """The versions of one artifact, newest first. NOT_FOUND if there are none.

        name: "artifacts/chat".
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_ARTIFACT_VERSIONS, asked, timeout, metadata),
            request(artifacts_pb2.ListArtifactVersionsRequest, name=name, page_size=page_size),
            "artifacts",
        )

    def list_artifact_files(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[artifacts_pb2.ArtifactFile, artifacts_pb2.ListArtifactFilesResponse]:
        """The files of one version, by path.

        parent: The version whose files these are, as in GetArtifactRequest.
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_ARTIFACT_FILES, asked, timeout, metadata),
            request(artifacts_pb2.ListArtifactFilesRequest, parent=parent, page_size=page_size),
            "files",
        )

    def download_artifact(
        self,
        name: str = "",
        *,
        path: str = "",
        offset: int = 0,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[artifacts_pb2.DownloadArtifactResponse, None]:
        """One file's bytes, in pieces of at most 1 MiB, from any offset. DATA_LOSS if the file on
        the store is shorter than what was published; NOT_FOUND if the version is deleted
        meanwhile. Compare what has come with ArtifactFile.digest.

        name: As in GetArtifactRequest. Name a version, so that a download that goes on later is
          of the same.
        path: ArtifactFile.path, or "manifest.json".
        offset: The first byte to send; at most the file's size.
        resume_token: Of the last response of a stream that broke: goes on behind it. Stands for
          `offset`.
        """
        return self._calls.stream(
            _DOWNLOAD_ARTIFACT,
            request(
                artifacts_pb2.DownloadArtifactRequest,
                name=name,
                path=path,
                offset=offset,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    async def delete_artifact(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Deletes one version; its number is not given again. FAILED_PRECONDITION
        (ARTIFACT_IN_USE), which names them, while an alias, a deployment, an artifact that was
        made from it, or a run or job that has not ended points there.

        name: "artifacts/chat@7". Aliases and names without a version are refused.
        """
        await self._calls.unary(
            _DELETE_ARTIFACT,
            request(artifacts_pb2.DeleteArtifactRequest, name=name),
            timeout,
            metadata,
        )

    async def get_alias(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Alias:
        """One alias and its etag. NOT_FOUND if there is none of that name.

        name: "artifacts/chat:prod".
        """
        response: artifacts_pb2.GetAliasResponse = await self._calls.unary(
            _GET_ALIAS, request(artifacts_pb2.GetAliasRequest, name=name), timeout, metadata
        )
        return response.alias

    def list_aliases(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[artifacts_pb2.Alias, artifacts_pb2.ListAliasesResponse]:
        """The aliases of one artifact, by name.

        parent: "artifacts/chat".
        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_ALIASES, asked, timeout, metadata),
            request(artifacts_pb2.ListAliasesRequest, parent=parent, page_size=page_size),
            "aliases",
        )

    async def set_alias(
        self,
        alias: artifacts_pb2.Alias | None = None,
        *,
        create_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Alias:
        """Makes an alias, or moves it. ABORTED (ETAG_MISMATCH) if an etag is given and it has
        moved since; ALREADY_EXISTS (ALIAS_EXISTS) if it was only to be made and is there;
        NOT_FOUND, and it stays where it was, if the version is deleted at the same time.

        alias: Its name and artifact; its etag, if it may only be moved from what was read.
        create_only: Only if there is no alias of that name yet, or it names this version
          already. Not with an etag.
        """
        response: artifacts_pb2.SetAliasResponse = await self._calls.unary(
            _SET_ALIAS,
            request(artifacts_pb2.SetAliasRequest, alias=alias, create_only=create_only),
            timeout,
            metadata,
        )
        return response.alias

    async def delete_alias(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes an alias; what it named stays. ABORTED (ETAG_MISMATCH) as in SetAlias.

        name: "artifacts/chat:prod".
        etag: Alias.etag: only if it has not moved since. Empty: in any case.
        """
        await self._calls.unary(
            _DELETE_ALIAS,
            request(artifacts_pb2.DeleteAliasRequest, name=name, etag=etag),
            timeout,
            metadata,
        )

    async def create_upload(
        self,
        upload: artifacts_pb2.Upload | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Upload:
        """Begins an upload: says which files will come, and of which sizes. PERMISSION_DENIED
        (OTHER_TENANT) if the artifact's latest version is another tenant's; RESOURCE_EXHAUSTED
        (TOO_MANY_UPLOADS) if the tenant has 20 unfinished uploads.

        upload: What will come. The other fields are the platform's to set.
        request_id: The caller's own, 1 to 128 of A-Z a-z 0-9 . _ : -. The same id and
          specification, sent again by the same tenant, give the upload that was made; another
          specification is ALREADY_EXISTS. Empty: each call makes one.
        """
        response: artifacts_pb2.CreateUploadResponse = await self._calls.unary(
            _CREATE_UPLOAD,
            request(artifacts_pb2.CreateUploadRequest, upload=upload, request_id=request_id),
            timeout,
            metadata,
        )
        return response.upload

    async def get_upload(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Upload:
        """An upload and how far each of its files has come.

        name: "uploads/3f2a…".
        """
        response: artifacts_pb2.GetUploadResponse = await self._calls.unary(
            _GET_UPLOAD, request(artifacts_pb2.GetUploadRequest, name=name), timeout, metadata
        )
        return response.upload

    def list_uploads(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[artifacts_pb2.Upload, artifacts_pb2.ListUploadsResponse]:
        """All uploads, by name, without their files.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_UPLOADS, asked, timeout, metadata),
            request(artifacts_pb2.ListUploadsRequest, page_size=page_size),
            "uploads",
        )

    async def write_upload(
        self,
        name: str = "",
        *,
        path: str = "",
        offset: int = 0,
        data: bytes = b"",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """One piece of one file. Pieces may come in any order, several at once, and again:
        ALREADY_EXISTS (PIECE_DIFFERS) only if another content was sent for the same place.

        name: "uploads/3f2a…".
        path: UploadFile.path.
        offset: Where in the file the piece begins: a multiple of Upload.piece_bytes.
        data: Upload.piece_bytes bytes, or what the file has from there if that is less.
        """
        await self._calls.unary(
            _WRITE_UPLOAD,
            request(
                artifacts_pb2.WriteUploadRequest, name=name, path=path, offset=offset, data=data
            ),
            timeout,
            metadata,
        )

    async def finish_upload(
        self,
        name: str = "",
        *,
        digests: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        """Publishes what was uploaded as the next version of UploadSpec.artifact_id.
        FAILED_PRECONDITION (UPLOAD_INCOMPLETE) says which pieces are missing; INVALID_ARGUMENT
        (DIGEST_MISMATCH) which file has another digest; PERMISSION_DENIED (OTHER_TENANT) is for
        a name that became another tenant's meanwhile. Again: gives the artifact that it made.

        name: "uploads/3f2a…".
        digests: Of each file, "sha256:<hex>" by its path: what was sent has to be what was
          meant.
        """
        response: artifacts_pb2.FinishUploadResponse = await self._calls.unary(
            _FINISH_UPLOAD,
            request(artifacts_pb2.FinishUploadRequest, name=name, digests=digests),
            timeout,
            metadata,
        )
        return response.artifact

    async def delete_upload(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Gives an upload up, and removes what has come. An artifact that it became stays.

        name: "uploads/3f2a…".
        """
        await self._calls.unary(
            _DELETE_UPLOAD, request(artifacts_pb2.DeleteUploadRequest, name=name), timeout, metadata
        )
