-- Cap what all agents of a tenant spend in a day (UTC), or lift the cap with NULL. All of the
-- tenant's wallets are locked first: whoever held money before this has committed by then, so the
-- figures are whole, and whoever comes after it knows the cap. Returns no row for an unknown
-- tenant. `spent` is settled today, `held` by calls in flight, `before` the cap until now.
CREATE FUNCTION set_tenant_cap(p_tenant uuid, p_cap numeric)
RETURNS TABLE (before numeric, cap numeric, spent numeric, held numeric, agents bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  locked bigint;
BEGIN
  PERFORM 1 FROM accounts w WHERE w.tenant_id = p_tenant ORDER BY w.id FOR UPDATE;
  GET DIAGNOSTICS locked = ROW_COUNT;
  -- from here on no wallet is added to the tenant either
  SELECT t.daily_cap_usd INTO before FROM tenants t WHERE t.id = p_tenant FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  UPDATE tenants t SET daily_cap_usd = p_cap WHERE t.id = p_tenant RETURNING t.daily_cap_usd INTO cap;
  SELECT count(*), coalesce(sum(w.held), 0),
         coalesce(sum(w.spent_today)
           FILTER (WHERE w.spent_day = (clock_timestamp() AT TIME ZONE 'UTC')::date), 0)
    INTO agents, held, spent FROM accounts w WHERE w.tenant_id = p_tenant;
  IF agents <> locked THEN
    RAISE EXCEPTION 'the tenant got another agent meanwhile: try again'
      USING ERRCODE = 'serialization_failure';
  END IF;
  RETURN NEXT;
END $$;
