"""The client that was generated from the document creates a job and reads it. Arguments: where the package `client` is, the address."""

import sys

sys.path.insert(0, sys.argv[1])

from client import Client  # noqa: E402
from client.api.job import create_cron_job, get_job, list_jobs  # noqa: E402
from client.models import Job, JobInput  # noqa: E402

with Client(base_url=sys.argv[2], raise_on_unexpected_status=True) as client:
    wanted = JobInput.from_dict(
        {"name": "Generated", "schedule": "0 3 * * *", "timezone": "Europe/Berlin", "handler_name": "test:echo"}
    )
    created = create_cron_job.sync(client=client, body=wanted)
    assert isinstance(created, Job), created
    read = get_job.sync(created.id, client=client)
    assert isinstance(read, Job) and read.to_dict() == created.to_dict(), read
    listed = list_jobs.sync(client=client, name="Generated")
    assert [job.id for job in listed.jobs] == [created.id], listed
    print(f"the generated client created and read {read.id}: next run {read.next_run}")
