-- An event with two holes in its canonical JSON text: when, and which number in the chain.
-- See shared/domain/audit.py, which drafts it and verifies what becomes of it.
CREATE TYPE audit_draft AS (
  agent_id   uuid,
  tenant_id  uuid,
  event_type text,
  head       text,
  middle     text,
  tail       text
);

-- Append drafts to their agents' chains, in the order given within each agent. Chains are locked
-- in the order of agent ids, so that two batches never wait for each other.
CREATE FUNCTION chain_events(drafts audit_draft[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  agents   uuid[] := array(SELECT DISTINCT d.agent_id FROM unnest(drafts) d);
  locked   bigint;
  at       timestamptz;
  stamp    text;
  owners   uuid[];
  tenants  uuid[];
  seqs     bigint[];
  types    text[];
  payloads text[];
  tips     text[];
  first    boolean[];
  previous text;
  befores  text[] := '{}';
  hashes   text[] := '{}';
BEGIN
  IF cardinality(agents) = 0 THEN
    RETURN;
  END IF;
  PERFORM 1 FROM audit_heads WHERE agent_id = ANY (agents) ORDER BY agent_id FOR UPDATE;
  GET DIAGNOSTICS locked = ROW_COUNT;
  IF locked < cardinality(agents) THEN
    INSERT INTO audit_heads (agent_id, seq) SELECT a, 0 FROM unnest(agents) a ORDER BY a
      ON CONFLICT DO NOTHING;
    PERFORM 1 FROM audit_heads WHERE agent_id = ANY (agents) ORDER BY agent_id FOR UPDATE;
  END IF;

  -- Everything but the hashes is known at once; only these depend on one another.
  at := clock_timestamp();
  stamp := to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
  SELECT array_agg(l.agent_id), array_agg(l.tenant_id), array_agg(l.seq), array_agg(l.event_type),
         array_agg(l.head || stamp || l.middle || l.seq || l.tail), array_agg(l.hash),
         array_agg(l.nth = 1)
    INTO owners, tenants, seqs, types, payloads, tips, first
    FROM (SELECT d.*, h.hash, row_number() OVER chain AS nth,
                 h.seq + row_number() OVER chain AS seq
            FROM unnest(drafts) WITH ORDINALITY
                   AS d (agent_id, tenant_id, event_type, head, middle, tail, ord)
            JOIN audit_heads h ON h.agent_id = d.agent_id
          WINDOW chain AS (PARTITION BY d.agent_id ORDER BY d.ord)) l;
  FOR n IN 1 .. cardinality(seqs) LOOP
    IF first[n] THEN
      previous := tips[n];
    END IF;
    befores := befores || previous;
    previous := encode(sha256(convert_to(coalesce(previous, '') || payloads[n], 'UTF8')),
                       'hex');
    hashes := hashes || previous;
  END LOOP;

  INSERT INTO audit_events (agent_id, tenant_id, seq, event_type, payload, previous_hash,
                            event_hash, created_at)
    SELECT u.*, at FROM unnest(owners, tenants, seqs, types, payloads, befores, hashes) u;
  UPDATE audit_heads h SET seq = u.seq, hash = u.hash
    FROM (SELECT DISTINCT ON (v.agent_id) v.*
            FROM unnest(owners, seqs, hashes) AS v (agent_id, seq, hash)
           ORDER BY v.agent_id, v.seq DESC) u
   WHERE h.agent_id = u.agent_id;
END $$;

-- batch: [{agent_id, tenant_id, event: [type, head, middle, tail]}, …]
CREATE FUNCTION append_audit(batch jsonb) RETURNS void LANGUAGE sql AS $$
  SELECT chain_events(array_agg(ROW(x.agent_id, x.tenant_id, x.event ->> 0, x.event ->> 1,
                                    x.event ->> 2, x.event ->> 3)::audit_draft ORDER BY x.ord))
    FROM ROWS FROM (jsonb_to_recordset(batch) AS (agent_id uuid, tenant_id uuid, event jsonb))
           WITH ORDINALITY AS x (agent_id, tenant_id, event, ord)
$$;
