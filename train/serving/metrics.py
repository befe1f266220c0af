"""What is counted, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

PATHS = ("/predict", "/healthz", "/metrics", "/openapi.json", "/")  # others are one: a stranger chooses their names
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one app, in a registry of its own: two apps in one process do not mix theirs."""

    def __init__(self) -> None:
        """All are zero."""
        self.registry = CollectorRegistry()
        here = {"registry": self.registry}
        ProcessCollector(**here)  # memory, processor time, open files; on Linux
        self.requests = Counter("plainloop_requests", "Requests by path and status.", ["path", "status"], **here)
        self.seconds = Histogram(
            "plainloop_request_seconds", "From header to answer.", ["path"], buckets=SECONDS, **here
        )
        self.batch_size = Histogram("plainloop_batch_size", "Images per call of the model.", buckets=SIZES, **here)
        self.in_flight = Gauge("plainloop_in_flight", "Images being read, decoded or classified.", **here)
        self.bytes = Gauge("plainloop_image_bytes", "Bytes of images read and not yet decoded.", **here)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        path = path if path in PATHS else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
