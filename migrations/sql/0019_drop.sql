DROP FUNCTION chain_position(uuid, timestamptz);
DROP INDEX dead_letters_over_idx;
REVOKE DELETE ON dead_letters FROM ainfera_app;
