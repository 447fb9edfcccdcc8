-- What one transaction of the writer adds, in one round trip. Runs with its caller's rights, under
-- row-level security; called alone it is the whole transaction.
--
-- The tenant's lock precedes the first write, so transaction ids rise along each chain. Heads and
-- marks move only from where the caller read them; else nothing is kept (BV001). Each statement of
-- the function sees what was committed before the statement, also what the lock had to wait for.
CREATE FUNCTION append(
    tenant uuid, lock bigint,
    head_chain text[], head_old_seq bigint[], head_old_hash bytea[], head_seq bigint[],
    head_hash bytea[], head_at bigint[],
    mark_source uuid[], mark_boot uuid[], mark_old bigint[], mark_n bigint[],
    -- hashes: previous_hash and event_hash; derived: the filter columns between separators
    event_chain text[], event_incarnation integer[], event_seq bigint[], event_at bigint[],
    event_ids uuid[], event_body bytea[], event_hashes bytea[], event_derived text[],
    part_event uuid[], part_kind text[], part_salt bytea[], part_stored bytea[], part_mode text[]
) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moved bigint;
BEGIN
    PERFORM set_config('behavry.tenant_id', append.tenant::text, true),
            set_config('synchronous_commit', 'on', true),
            pg_advisory_xact_lock(append.lock);

    UPDATE audit.chain_heads h
    SET seq = u.seq, event_hash = u.event_hash, committed_at = u.committed_at
    FROM unnest(head_chain, head_old_seq, head_old_hash, head_seq, head_hash, head_at)
        AS u (chain, old_seq, old_hash, seq, event_hash, committed_at)
    WHERE h.tenant_id = append.tenant AND h.chain = u.chain
      AND h.seq = u.old_seq AND h.event_hash = u.old_hash;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> cardinality(head_chain) THEN
        RAISE EXCEPTION 'a head is not where it was read' USING ERRCODE = 'BV001';
    END IF;

    UPDATE audit.source_marks m SET n = u.n
    FROM unnest(mark_source, mark_boot, mark_old, mark_n) AS u (source, boot, old_n, n)
    WHERE m.tenant_id = append.tenant AND m.source = u.source AND m.boot = u.boot
      AND m.n = u.old_n;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> cardinality(mark_source) THEN
        RAISE EXCEPTION 'a mark is not where it was read' USING ERRCODE = 'BV001';
    END IF;

    INSERT INTO audit.events
        (tenant_id, chain, incarnation, seq, committed_at, position, event_id, body, previous_hash,
         event_hash, type, decision, agent, agent_name, session, server, tool, action, verdict,
         reason)
    SELECT append.tenant, e.chain, e.incarnation, e.seq, e.committed_at, e.position, e.event_id,
           e.body, substr(e.hashes, 1, 32), substr(e.hashes, 33), e.texts[1], e.texts[2]::uuid,
           e.texts[3], e.texts[4], e.texts[5], e.texts[6], e.texts[7], e.texts[8], e.texts[9],
           e.texts[10]
    FROM (
        SELECT u.*, string_to_array(u.derived, E'\x1f', '') AS texts
        FROM unnest(event_chain, event_incarnation, event_seq, event_at, event_ids, event_body,
                    event_hashes, event_derived)
            WITH ORDINALITY
            AS u (chain, incarnation, seq, committed_at, event_id, body, hashes, derived, position)
        OFFSET 0  -- keeps string_to_array from being written out ten times
    ) AS e;

    IF cardinality(part_event) > 0 THEN
        INSERT INTO audit.parts (tenant_id, event_id, kind, salt, stored, mode)
        SELECT append.tenant, p.event_id, p.kind, p.salt, p.stored, p.mode
        FROM unnest(part_event, part_kind, part_salt, part_stored, part_mode)
            AS p (event_id, kind, salt, stored, mode);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION append(
    uuid, bigint, text[], bigint[], bytea[], bigint[], bytea[], bigint[], uuid[], uuid[], bigint[],
    bigint[], text[], integer[], bigint[], bigint[], uuid[], bytea[], bytea[], text[], uuid[],
    text[], bytea[], bytea[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append(
    uuid, bigint, text[], bigint[], bytea[], bigint[], bytea[], bigint[], uuid[], uuid[], bigint[],
    bigint[], text[], integer[], bigint[], bigint[], uuid[], bytea[], bytea[], text[], uuid[],
    text[], bytea[], bytea[], text[]) TO behavry_audit_writer;
