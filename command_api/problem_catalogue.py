"""Every problem code that can leave the service: its status, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What a code means, as `GET /problems/{code}` explains it."""

    status: int
    title: str
    remedy: str


_REMEDIES: Mapping[int, Mapping[str, str]] = {
    400: {
        "bad_cursor": "Start again without `cursor`; send next_cursor unchanged.",
        "bad_position": "Name a position that the log has reached.",
        "malformed_json": "Send a JSON document as the body.",
    },
    401: {
        "enrolment_token_expired": "Issue a new token at POST /agents/{id}/enrolment-token.",
        "enrolment_token_unknown": "Copy the token whole, or issue a new one.",
        "proof_expired": "Set the node's clock, and ask again.",
        "proof_invalid": "Sign with the node's own key: the one that joins, or that has joined.",
        "token_expired": "Exchange the refresh token at POST /auth/refresh, or log in.",
        "token_invalid": "Log in again.",
        "token_missing": "Log in and send `Authorization: Bearer <access token>`.",
        "unauthenticated": "Log in and send `Authorization: Bearer <access token>`.",
        "wrong_credentials": "Check user name and password.",
    },
    403: {
        "forbidden": "Ask an owner of the organization for the right.",
        "missing_scope": "Ask an owner for the scope in `detail`; installation:admin is the operator's only.",
    },
    404: {
        "not_parked": "GET /projections/parked lists the streams that wait.",
        "not_found": "Check the id, and the organization that you are in.",
        "secret_unknown": "GET /secrets lists the names; store the secret first.",
        "unknown_view": "GET /projections lists the read models.",
        "upload_unknown": "Open a session with POST …/upload.",
    },
    405: {"method_not_allowed": "Use a method that the Allow header names."},
    408: {"body_too_slow": "Send the whole body at once, over a faster line if need be."},
    409: {
        "too_many_secrets": "Delete secrets that nobody uses any more.",
        "agent_exists": "Use a new id.",
        "agent_revoked": "A revoked agent stays out for good: enrol the node as a new agent.",
        "already_assigned": "Stop the job instead.",
        "already_finalizing": "Wait for the job's end: its training is over.",
        "already_uploaded": "Files never change once they are complete: register another dataset or model.",
        "attempt_not_held": "End the attempt and report nothing more of it.",
        "attempts_exhausted": "Look at the last attempt's error, put it right, and request a new job.",
        "being_imported": "Its files come from elsewhere: register another dataset or model to upload files.",
        "conflict": "Read the resource again: its present state forbids the command.",
        "dataset_deleted": "Choose another dataset, or register it again.",
        "dataset_exists": "Use a new id.",
        "dataset_not_ready": "Wait until the dataset is ready.",
        "dataset_rejected": "See the dataset's problems, and register corrected files.",
        "email_taken": "Log in, or use another address.",
        "import_not_failed": "Only a failed import can be retried; look at its status.",
        "import_over": "Forget the outcome: the import was retried, finished or deleted meanwhile.",
        "enrolment_token_used": "Issue a token for each node.",
        "job_ended": "The job is over; nothing is left to be done.",
        "job_exists": "Use a new id.",
        "log_changed": "Begin again with after=0 and the new log_id: positions of the old log mean nothing.",
        "model_deleted": "Choose another model, or register it again.",
        "model_exists": "Use a new id.",
        "model_not_ready": "Wait until the model is ready.",
        "model_rejected": "See the model's problems, and register corrected files.",
        "no_import": "Read the dataset or model itself: its status says how it stands.",
        "no_adapter": "Wait until the job has succeeded; a job that failed leaves no adapter.",
        "not_a_base_model": "Choose a base model: adapters cannot be trained further or uploaded.",
        "not_uploaded": "Complete the upload, or wait for the end of the import.",
        "not_validating": "The job has to be validated first.",
        "offer_gone": "Forget the offer: somebody else took it, or it is over.",
        "organization_exists": "Use a new id.",
        "other_pool": "An agent takes work of its own pool only.",
        "refused": "Read the resource again: its present state forbids the command.",
        "report_out_of_place": "Report the steps of an attempt in their order.",
        "secret_already_issued": "A secret is shown once: log in, or ask with a new Idempotency-Key.",
        "upload_expired": "POST …/upload again for fresh URLs, and send the named files anew.",
        "upload_not_open": "POST …/upload, and complete the session that it answers.",
        "user_exists": "Use a new id.",
        "username_taken": "Log in, or choose another name.",
        "version_conflict": "Repeat the request: others were changing the same thing.",
    },
    413: {"body_too_large": "Send less than `detail` names; files go through an upload session."},
    415: {"unsupported_media_type": "Send application/json."},
    422: {
        "address_refused": "Name a host on the public Internet, or have the operator allow its network.",
        "archive_damaged": "Pack and upload the archive again.",
        "archive_unknown": "Offer a zip, tar, tar.gz or tar.bz2 of the folder.",
        "archive_unsafe": "Leave links, devices and names that climb out or collide out of the archive.",
        "empty_dataset": "Declare at least one file that is not empty.",
        "empty_model": "Declare at least one file that is not empty.",
        "empty_verdict": "Report problems, or both facts and content.",
        "event_not_canonical": "Send finite numbers and valid Unicode.",
        "event_too_large": "Shorten the text fields of the request.",
        "file_missing": "PUT the named file to its URL, then complete.",
        "folder_outside_roots": "Name a folder below one of KINORA_IMPORT_ROOTS, or upload the files.",
        "folder_unsafe": "Leave links that lead out, devices and pipes out of the folder.",
        "frames_exceed_clip": "Ask for fewer frames, or leave the shortest clip out.",
        "hash_mismatch": "The named file differs from its declaration: send it again, or register anew.",
        "hub_off": "Import by URL, or upload: this installation reaches no model hub.",
        "idempotency_key_reused": "Use a new key: this one belongs to another request.",
        "import_too_large": "Import less at once, or have the operator raise imports.max_bytes.",
        "invalid": "Correct the fields named in `errors`.",
        "invalid_request": "Correct the fields named in `errors`.",
        "no_captions": "Put captions.jsonl or captions.csv beside the clips, in one folder of the source.",
        "no_checkpoint": "Offer one folder with config.json and *.safetensors.",
        "object_outside_attempt": "Report only objects below the attempt's own prefixes.",
        "own_store_refused": "Import from a bucket of your own.",
        "port_refused": "Let the receiver listen on 443 or on a port from 1024 on.",
        "parts_refused": "Send the named file's parts anew, and name each of them once, in order.",
        "secret_needed": "Store a secret of kind s3 and name it in source.secret.",
        "secret_in_clear": "Use an https address; secrets are not sent where others can read them.",
        "secret_unsuitable": "Name a secret of a kind that `detail` lists.",
        "size_limit": "Declare at least one byte, and no more than `detail` allows.",
        "source_holds_secret": "Move the credential from the URI into a secret, and name that.",
        "source_invalid": "Write the URI as `detail` shows.",
        "source_missing": "Check the address; nothing is there.",
        "source_redirects": "Use the address that it finally leads to, by https.",
        "source_refused": "Store a credential that opens the source as a secret, and name it.",
        "source_unusable": "See `detail`: the source answers something else than files.",
        "too_many_files": "Import fewer files at once, or have the operator raise imports.max_files.",
        "unknown_file": "Complete only files that the session asked for.",
        "unknown_parameter": "Correct or leave out the query parameter that `errors` names.",
        "unknown_value": "Filter by the values that `errors` names.",
        "url_not_https": "Use an https address.",
        "validation_failed": "Check the files and register them again.",
    },
    421: {
        "misdirected_request": "Use the service's own address, or have its name added to allowed_hosts.",
    },
    429: {
        "too_many_attempts": "Wait for Retry-After seconds; a session that is open needs no log-in.",
        "too_many_feeds": "Close another feed first, or follow several things on one connection.",
        "too_many_requests": "Wait for Retry-After seconds.",
    },
    500: {
        "internal": "Report the request id: it finds the cause in the service's log.",
        "secret_unreadable": "Store the secret anew: the keys of this installation do not open it.",
    },
    503: {
        "host_unknown": "Check the host's name; if it is right, retry the import later.",
        "import_broken": "Retry the import; the service's log says what went wrong.",
        "import_cancelled": "The import was ended, because it was deleted or the service stopped.",
        "import_disk_full": "Free space on the disk of work_folder, then retry the import.",
        "import_too_slow": "Import less at once, or have the operator raise imports.max_seconds.",
        "source_unreachable": "Retry the import later: the source does not answer.",
        "log_too_new": "Upgrade this process: a newer release has written to the log.",
        "log_unavailable": "Repeat with the same Idempotency-Key: nothing happens twice.",
        "objects_in_deletion": "Repeat the request: unneeded objects are being deleted, which takes seconds.",
        "object_store_unavailable": "Try again later; GET /health says what is missing.",
        "still_verifying": "Send the same request again: verification goes on, and nothing is done twice.",
        "projection_behind": "Try again: the read model has not reached min_position yet.",
        "view_outdated": "Run `kinora projections` of this release, and wait until it has rebuilt the view.",
        "unavailable": "Try again later; GET /health says what is missing.",
    },
    507: {"log_full": "Free space on PostgreSQL's disk, then repeat with the same Idempotency-Key."},
}

CATALOGUE: Mapping[str, ProblemType] = {
    code: ProblemType(status, code.replace("_", " ").capitalize().replace("json", "JSON"), remedy)
    for status, remedies in _REMEDIES.items()
    for code, remedy in remedies.items()
}
