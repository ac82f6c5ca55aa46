-- The anchors' tag was once `aamc_v1_lock`; nothing else of that name is meant by anything. The
-- tag belongs to these five, whoever bears it now. Snapshots of the catalogue stay as they are:
-- their hash says exactly what decisions were made from.
UPDATE models SET aa_index_source = 'routing_backend_v1_lock', updated_at = now()
 WHERE slug IN ('mistral-large-3', 'gemini-3-1-pro', 'grok-4', 'gpt-5-5', 'claude-opus-4-7')
   AND aa_index_source IS DISTINCT FROM 'routing_backend_v1_lock';
UPDATE models SET aa_index_source = NULL, updated_at = now()
 WHERE slug NOT IN ('mistral-large-3', 'gemini-3-1-pro', 'grok-4', 'gpt-5-5', 'claude-opus-4-7')
   AND (aa_index_source ILIKE '%aamc%' OR aa_index_source = 'routing_backend_v1_lock');
