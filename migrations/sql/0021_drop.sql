DROP FUNCTION open_inferences(jsonb, jsonb), enlarge_hold(uuid, int, numeric, int, jsonb),
  stop_at_threshold(killswitch_scope, numeric, int), keep_killswitch_spent(killswitch_scope[], int),
  killswitch_admit(killswitch_scope[], uuid, numeric, int), killswitch_scopes(uuid[], jsonb),
  killswitch_count(killswitch_scope[], int), engage_killswitch(text, text, text, numeric, numeric),
  note_killswitch_calls(uuid, text), killswitch_lock(), let_no_call_begin(), release_killswitch(text, text),
  slide_killswitch_window(int), look_at_killswitch_spending(int), killswitch_spending(uuid[], int), killswitch_held(uuid[]),
  killswitch_settled(timestamptz, timestamptz, uuid[]), held_again_after(uuid, timestamptz);
DROP TRIGGER killswitch_thresholds_alone ON killswitch_thresholds;
DROP FUNCTION choose_threshold_alone();
DROP TYPE killswitch_scope;
DROP TABLE killswitch_spent, killswitch_window;
ALTER TABLE dead_letters DROP held_again_at;
ALTER TABLE killswitches ALTER spent_usd TYPE numeric(20,9)
  USING least(spent_usd, 99999999999.999999999);

-- what the older script begins by dropping
CREATE FUNCTION open_inferences(batch jsonb) RETURNS void LANGUAGE sql AS '';
