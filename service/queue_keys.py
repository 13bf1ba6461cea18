"""Every key of the queue in Redis, in one place: this is the schema, which lua/state.lua repeats.

    {bar:<queue>}:meta          hash    counters, when it was last reaped, who runs solo
    {bar:<queue>}:ready         zset    id → µs when it came, less its priority's lead
    {bar:<queue>}:solo          zset    the same, of jobs that lost workers: they run alone
    {bar:<queue>}:delayed       zset    id → µs when it is tried again
    {bar:<queue>}:lease         zset    id → µs when its worker counts as lost
    {bar:<queue>}:deadlines     zset    id → µs when it expires, of all that has not ended
    {bar:<queue>}:dead          zset    id → µs when it died
    {bar:<queue>}:kept          zset    id → µs when its record is dropped, of all that has ended
    {bar:<queue>}:j:<id>        hash    the job: state, payload, token, counts, times
    {bar:<queue>}:s:<id>:<token> string a result that is not visible yet
    {bar:<queue>}:r:<id>        string  the result
    {bar:<queue>}:p:<id>        list    previews of images
    {bar:<queue>}:t:<owner>     set     ids of the owner's unfinished jobs
    {bar:<queue>}:o:<owner>     zset    id → created_at, of the owner's newest jobs, ended or not
    {bar:<queue>}:idem:<owner>:<hash> hash  what an idempotency key stands for
    {bar:<queue>}:w:<worker>    hash    its last claim: nonce and reply
    {bar:<queue>}:h:<worker>    string  what it last said of itself
    {bar:<queue>}:workers       zset    worker → when it last said so
    {bar:<queue>}:bell          list    wakes idle workers
    {bar:<queue>}:nothing       never there: what scripts delete first that run on a full server
    {bar:<queue>}:ev:<api>      channel of jobs that have changed, for those who wait for them
    {bar:<queue>}:ctl           channel of jobs that their workers must drop

The braces are a Cluster hash tag: all of a queue lies on one node, so that a script may use all of
it. Every key belongs to an unfinished job or has a time to live, except `meta` and the sets, whose
size is bounded by what they count. Beside the queues lies `{bar:rate:<owner>}`, a string: the µs at
which nothing counts any more against the owner's rate limit, when it also expires.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """The keys of one queue."""

    queue: str

    @property
    def prefix(self) -> str:
        return f"{{bar:{self.queue}}}:"

    @property
    def meta(self) -> str:
        return f"{self.prefix}meta"

    @property
    def ready(self) -> str:
        return f"{self.prefix}ready"

    @property
    def bell(self) -> str:
        return f"{self.prefix}bell"

    @property
    def dead(self) -> str:
        return f"{self.prefix}dead"

    @property
    def workers(self) -> str:
        return f"{self.prefix}workers"

    @property
    def control(self) -> str:
        return f"{self.prefix}ctl"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}j:{job_id}"

    def staged(self, job_id: str, token: str) -> str:
        return f"{self.prefix}s:{job_id}:{token}"

    def result(self, job_id: str) -> str:
        return f"{self.prefix}r:{job_id}"

    def partials(self, job_id: str) -> str:
        return f"{self.prefix}p:{job_id}"

    def idempotency_key(self, owner: str, key_hash: str) -> str:
        return f"{self.prefix}idem:{owner}:{key_hash}"

    def heartbeat(self, worker: str) -> str:
        return f"{self.prefix}h:{worker}"

    def events(self, api: str) -> str:
        return f"{self.prefix}ev:{api}"
