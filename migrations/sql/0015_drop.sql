REVOKE INSERT ON models FROM ainfera_app;
DROP INDEX inferences_settled_at_idx;
DROP TABLE capture_guard;
DROP FUNCTION take_quote(uuid, uuid, uuid, bytea, text, uuid, bytea);
DROP TABLE quote_uses, quotes;
