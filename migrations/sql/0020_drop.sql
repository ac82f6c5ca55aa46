DROP FUNCTION chain_position(uuid, timestamptz);
