"""`python -m migrations upgrade head`: the URL is `MIGRATION_DATABASE_URL`, else `DATABASE_URL`."""

import sys

from migrations.run import downgrade, upgrade
from shared.config import read_settings

action, revision = sys.argv[1:]
settings = read_settings()
{"upgrade": upgrade, "downgrade": downgrade}[action](
    settings.migration_database_url or settings.database_url, revision
)
