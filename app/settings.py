"""Everything that can be configured, read from ENGINESMITH_* environment variables."""

import ipaddress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Settings(BaseSettings):
    """The settings of one process; its entry point makes them once and hands them down."""

    model_config = SettingsConfigDict(env_prefix="ENGINESMITH_", frozen=True)

    data_dir: Path = Field(Path("data"), description="SQLite database, artifacts, signing key, scratch files.")
    database_url: str = Field("", repr=False, description="SQLAlchemy URL; empty: SQLite in the data directory.")
    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey: redis://, rediss:// or redis+socket:///path. `serve` starts its own.",
    )
    store_url: str = Field(
        "", repr=False, description="s3://, gs://, az:// or file:// URL; empty: the data directory's artifacts folder."
    )
    cache_dir: Path | None = Field(
        None, description="Where workers keep copies of remote artifacts; empty: DATA_DIR/cache."
    )
    cache_bytes: int = Field(64 * GIB, ge=0, description="Size of that cache; least recently used go first.")
    signing_key: str = Field(
        "",
        repr=False,
        description="Ed25519 private key, 64 hex digits, shared by all workers; empty: DATA_DIR/signing.key.",
    )

    allowed_hosts: str = Field(
        "",
        description="Names that the API answers to besides `localhost` and IP addresses, separated by commas; "
        "`*.example.com`: all below it, `*`: any.",
    )

    max_blob_bytes: int = Field(1024 * GIB, gt=0, description="Largest upload accepted.")
    max_json_bytes: int = Field(
        MIB, gt=0, description="Largest JSON request body of any call; most calls have a smaller limit of their own."
    )
    max_streams: int = Field(
        400,
        ge=0,
        description="Event streams open at once in one API process, of which one client address may have half; fewer "
        "than connections, of which each takes one.",
    )
    max_onnx_bytes: int = Field(2 * GIB, gt=0, description="Largest ONNX file parsed.")
    max_prefer_wait_s: float = Field(60.0, ge=0, description="Longest `Prefer: wait` honoured, seconds.")

    max_connections: int = Field(
        1000, gt=0, description="Connections that an API process takes; fewer if it may not open two files for each."
    )
    max_connections_per_address: int = Field(
        500, ge=0, description="The same for one client address; 0 behind a proxy, from which all come: no limit."
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks of proxies, separated by commas, whose X-Forwarded-For says which client a "
        "request is from; empty: none, `*`: any peer, and what the client itself has written there counts.",
    )
    max_header_bytes: int = Field(64 * KIB, gt=0, description="Longest request line and headers of a request.")
    header_timeout_s: float = Field(20.0, gt=0, description="Time for a request's headers to arrive, seconds.")
    keep_alive_s: float = Field(30.0, gt=0, description="A connection without requests is closed after it, seconds.")
    min_transfer_rate: int = Field(1 * KIB, gt=0, description="Bytes a second, below which a transfer is slow.")
    slow_transfer_s: float = Field(
        60.0, gt=0, description="A body or an answer that has been slow for so long is cut off, seconds."
    )
    max_buffered_bytes: int = Field(
        128 * MIB, gt=0, description="Request bodies that an API process holds in memory, half of it JSON."
    )

    min_free_bytes: int = Field(
        64 * MIB, ge=0, description="Free space without which the API is not ready, on each disk it writes to."
    )

    lease_s: float = Field(30.0, gt=0, description="A job not renewed for this long goes to another worker, seconds.")
    job_deadline_s: float = Field(4 * 3600.0, gt=0, description="A job running longer is killed, seconds.")
    verification_deadline_s: float = Field(
        120.0, gt=0, description="A verification running longer is killed, seconds; 16 MiB of weights add one."
    )
    run_deadline_s: float = Field(
        600.0, gt=0, description="A run of an engine, or a tenth of a benchmark, running longer is killed, seconds."
    )
    max_attempts: int = Field(3, ge=1, description="Times a job is started before it fails for good.")
    sweep_interval_s: float = Field(5.0, gt=0, description="Time between sweeps for lost jobs, seconds.")
    outage_limit_s: float = Field(
        3600.0, gt=0, description="A job fails once outages have kept it from being done for this long, seconds."
    )
    orphan_grace_s: float = Field(
        24 * 3600.0, gt=0, description="Unreferenced artifacts younger than this are kept, seconds."
    )
    store_sweep_interval_s: float = Field(
        24 * 3600.0, ge=0, description="Time between sweeps of the store for files without a row, seconds; 0: never."
    )
    keep_jobs_days: float = Field(
        90.0, ge=0, description="Jobs and their events are removed so long after they ended; 0: never."
    )
    keep_outputs_days: float = Field(
        30.0, ge=0, description="What runs read and wrote is released so long after they ended; 0: with their jobs."
    )
    keep_idempotency_keys_days: float = Field(
        7.0, ge=0, description="Idempotency keys are forgotten so long after their job ended; 0: with their jobs."
    )
    scrub_period_s: float = Field(
        7 * 86400.0, ge=0, description="Every artifact is read and checked within this time, seconds; 0: never."
    )
    worker_timeout_s: float = Field(20.0, gt=0, description="A worker silent for this long counts as gone, seconds.")
    resident_bytes: int | None = Field(
        None,
        ge=0,
        description="Memory for engines kept loaded between jobs, per worker; empty: 4 GiB, on a GPU half of its own.",
    )
    page_locked_bytes: int = Field(
        0,
        ge=0,
        description="Page-locked memory through which TensorRT 8 reads the weights of refits, per worker with a GPU; "
        "it cannot be swapped, and what it gains is not measured yet; 0: none.",
    )
    page_locked_idle_s: float = Field(
        600.0, gt=0, description="Page-locked memory that no refit has used for so long is given back, seconds."
    )

    job_memory_bytes: int | None = Field(
        None,
        ge=MIB,
        description="Memory that one job may take of the machine's; empty: 4 GiB or an eighth of the machine's, and "
        "six times the weights, twice as much on a GPU.",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe lines logged.")
    log_json: bool = Field(default=True, description="JSON lines; false: text for people.")

    @field_validator("trusted_proxies")
    @classmethod
    def _names_proxies(cls, value: str) -> str:
        """Refuse what no peer's address can be equal to: the server would pass over it in silence."""
        words = [stripped for word in value.split(",") if (stripped := word.strip())]
        for word in [] if words == ["*"] else words:
            try:
                ipaddress.ip_network(word)
            except ValueError as error:
                raise ValueError(
                    f"{error}. Give IP addresses such as 10.0.0.7 and networks such as 10.0.0.0/8, separated by "
                    "commas, or * alone for any peer"
                ) from error
        return ",".join(words)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'enginesmith.db'}"

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names that the API answers to besides localhost."""
        return tuple(name for word in self.allowed_hosts.split(",") if (name := word.strip()))

    @property
    def artifacts_dir(self) -> Path:
        """The folder of the artifacts if no store URL is set."""
        return self.data_dir / "artifacts"

    @property
    def scratch_dir(self) -> Path:
        """The folder for files that do not outlive the work of a process."""
        return self.data_dir / "scratch"


@lru_cache
def get_settings() -> Settings:
    """Return the settings of this process."""
    return Settings()
