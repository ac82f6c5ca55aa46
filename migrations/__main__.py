"""`python -m migrations upgrade head`: the URL is `MIGRATION_DATABASE_URL`, else `DATABASE_URL`."""

import sys

from migrations.run import downgrade, upgrade
from shared.config import Settings

action, revision = sys.argv[1:]
settings = Settings()
{"upgrade": upgrade, "downgrade": downgrade}[action](
    settings.migration_database_url or settings.database_url, revision
)
