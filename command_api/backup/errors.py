"""What can go wrong with backups.

BackupError
├── TargetRefused     the place for a backup cannot be used
├── BackupDamaged     something in a backup is not what its manifest says, or is missing
├── BackupTooNew      a newer Kinora wrote it
├── KeysLocked        the keys cannot be opened: no passphrase, or not the right one
├── NotEmpty          a restore would overwrite something
└── InstallationAway  the installation that is to be backed up does not answer
"""

from schemas.errors import KinoraError


class BackupError(KinoraError):
    """The root of this package's errors."""

    code = "backup_error"


class TargetRefused(BackupError):
    """The place for a backup cannot be used."""

    code = "backup_target"


class BackupDamaged(BackupError):
    """Something in a backup is not what its manifest says, or is missing."""

    code = "backup_damaged"


class BackupTooNew(BackupError):
    """A newer Kinora wrote the backup."""

    code = "backup_too_new"


class KeysLocked(BackupError):
    """The keys in a backup cannot be opened: no passphrase, or not the right one."""

    code = "backup_keys"


class NotEmpty(BackupError):
    """A restore would overwrite something."""

    code = "restore_not_empty"


class InstallationAway(BackupError):
    """The installation that is to be backed up does not answer."""

    code = "installation_away"
    retryable = True
