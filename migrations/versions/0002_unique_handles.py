"""One canonical URI, one agent.

Until now two signups could claim the same owner and handle. Where they did, the oldest agent keeps
its name and each later one gets the next free suffix, `-2`, `-3` and so on, in `canonical_uri` and
`did_web`. Its id, key, wallet and chain stay as they are; the chain, which nobody can rewrite,
keeps the name that was registered.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Nobody signs up between the renaming and the constraint; calls, which only read, go on.
_LOCK = "LOCK TABLE agents IN SHARE ROW EXCLUSIVE MODE"
# Without it, a name that thousands share would take a look at the whole table for each of them.
_INDEX = "CREATE INDEX agents_renaming_idx ON agents (canonical_uri)"
_RENAME = """
DO $$
DECLARE
  later record;
  before text;
  suffix integer;
BEGIN
  FOR later IN
    SELECT id, canonical_uri
      FROM (SELECT id, canonical_uri, row_number() OVER (
                     PARTITION BY canonical_uri ORDER BY created_at, id) AS place
              FROM agents) AS ranked
     WHERE place > 1
     ORDER BY canonical_uri, place
  LOOP
    IF before IS DISTINCT FROM later.canonical_uri THEN
      before := later.canonical_uri;
      suffix := 1;
    END IF;
    LOOP
      suffix := suffix + 1;
      EXIT WHEN NOT EXISTS (
        SELECT FROM agents WHERE canonical_uri = later.canonical_uri || '-' || suffix);
    END LOOP;
    UPDATE agents
       SET canonical_uri = canonical_uri || '-' || suffix, did_web = did_web || '-' || suffix
     WHERE id = later.id;
  END LOOP;
END $$
"""
_DROP_INDEX = "DROP INDEX agents_renaming_idx"
_CONSTRAIN = "ALTER TABLE agents ADD CONSTRAINT agents_canonical_uri_key UNIQUE (canonical_uri)"


def upgrade() -> None:
    for statement in (_LOCK, _INDEX, _RENAME, _DROP_INDEX, _CONSTRAIN):
        op.execute(statement)


def downgrade() -> None:
    """Suffixes stay: cards were signed and owners were told with them."""
    op.execute("ALTER TABLE agents DROP CONSTRAINT agents_canonical_uri_key")
