DROP FUNCTION open_inferences(jsonb, jsonb), enlarge_hold(uuid, int, numeric, int, jsonb),
  stop_at_threshold(killswitch_scope, numeric, int), keep_killswitch_spent(killswitch_scope[]),
  killswitch_admit(killswitch_scope[], uuid, numeric, int), killswitch_scopes(uuid[], jsonb),
  killswitch_count(killswitch_scope[], int), engage_killswitch(text, text, text, numeric, numeric),
  note_killswitch_calls(uuid, text), killswitch_lock(), forget_killswitch_spending(text),
  slide_killswitch_window(int), killswitch_spending(uuid[], int), killswitch_held(uuid[]),
  killswitch_settled(timestamptz, timestamptz, uuid[]);
DROP TYPE killswitch_scope;
DROP TABLE killswitch_spent, killswitch_window;

-- what the older script begins by dropping
CREATE FUNCTION open_inferences(batch jsonb) RETURNS void LANGUAGE sql AS '';
