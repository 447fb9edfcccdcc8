-- The second verifier: the same rules as services/audit/verify.py for links, on nothing but the
-- database's own sha256. It runs with its caller's rights, under row-level security.

-- event_hash = SHA-256(0x02 || "behavry/chain/1" || tenant || SHA-256(chain) || incarnation u32
--              || seq u64 || committed_at i64 || previous_hash || SHA-256(body)), big-endian.
CREATE FUNCTION event_hash_of(
    tenant uuid, chain text, incarnation integer, seq bigint, committed_at bigint,
    previous_hash bytea, body bytea
) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT sha256(
        '\x02'::bytea || convert_to('behavry/chain/1', 'UTF8') || uuid_send(tenant)
        || sha256(convert_to(chain, 'UTF8')) || int4send(incarnation) || int8send(seq)
        || int8send(committed_at) || previous_hash || sha256(body))
$$;

-- What is wrong with the chains of the current tenant (one of them, or all), lowest first; no rows
-- when every link holds. A tail cut together with its head, or a chain rewritten whole, does not
-- show here: only a signed checkpoint can tell.
CREATE FUNCTION verify_links(only_chain text DEFAULT NULL)
RETURNS TABLE (chain text, seq bigint, code text) LANGUAGE sql STABLE AS $$
    WITH linked AS (
        SELECT e.tenant_id, e.chain, e.incarnation, e.seq, e.committed_at, e.previous_hash,
               e.event_hash, e.body,
               coalesce(lag(e.seq) OVER w, 0) AS before_seq,
               coalesce(lag(e.event_hash) OVER w, decode(repeat('00', 32), 'hex')) AS before_hash,
               lag(e.committed_at) OVER w AS before_at
        FROM audit.events e
        WHERE e.tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid
          AND (only_chain IS NULL OR e.chain = only_chain)
        WINDOW w AS (PARTITION BY e.chain ORDER BY e.seq, e.committed_at)
    ), last AS (
        SELECT DISTINCT ON (l.chain) l.chain, l.seq, l.event_hash
        FROM linked l ORDER BY l.chain, l.seq DESC, l.committed_at DESC
    ), heads AS (
        SELECT h.chain, h.seq, h.event_hash FROM audit.chain_heads h
        WHERE h.tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid
          AND (only_chain IS NULL OR h.chain = only_chain)
    ), found AS (
        SELECT l.chain, CASE
                   WHEN l.seq <= l.before_seq THEN l.seq ELSE l.before_seq + 1 END AS seq,
               CASE WHEN l.seq <= l.before_seq THEN 'seq_duplicate'
                    WHEN l.before_seq = 0 THEN 'prefix_missing'
                    ELSE 'seq_gap' END AS code
        FROM linked l WHERE l.seq <> l.before_seq + 1
        UNION ALL
        SELECT l.chain, l.seq, 'link_broken' FROM linked l
        WHERE l.seq = l.before_seq + 1 AND l.previous_hash <> l.before_hash
        UNION ALL
        SELECT l.chain, l.seq, 'body_mismatch' FROM linked l
        WHERE l.event_hash <> audit.event_hash_of(l.tenant_id, l.chain, l.incarnation, l.seq,
                                                  l.committed_at, l.previous_hash, l.body)
        UNION ALL
        SELECT l.chain, l.seq, 'time_regressed' FROM linked l
        WHERE l.seq > l.before_seq AND l.committed_at <= l.before_at
        UNION ALL
        SELECT h.chain, 1, 'chain_missing' FROM heads h
        WHERE NOT EXISTS (SELECT FROM last WHERE last.chain = h.chain)
        UNION ALL
        SELECT h.chain, last.seq + 1, 'tail_truncated' FROM heads h
        JOIN last ON last.chain = h.chain AND last.seq < h.seq
        UNION ALL
        SELECT h.chain, h.seq + 1, 'link_broken' FROM heads h
        JOIN last ON last.chain = h.chain AND last.seq > h.seq
        UNION ALL
        SELECT h.chain, h.seq, 'link_broken' FROM heads h
        JOIN last ON last.chain = h.chain AND last.seq = h.seq
                 AND last.event_hash <> h.event_hash
        UNION ALL
        SELECT last.chain, 1, 'link_broken' FROM last
        WHERE NOT EXISTS (SELECT FROM heads WHERE heads.chain = last.chain)
    )
    -- One code per position: what is wrong with the place comes before what is wrong in it.
    SELECT DISTINCT ON (f.chain COLLATE "C", f.seq) f.chain, f.seq, f.code
    FROM found f
    ORDER BY f.chain COLLATE "C", f.seq,
             array_position(ARRAY['chain_missing', 'prefix_missing', 'seq_gap', 'seq_duplicate',
                                  'tail_truncated', 'link_broken', 'time_regressed'], f.code)
$$;

REVOKE ALL ON FUNCTION event_hash_of(uuid, text, integer, bigint, bigint, bytea, bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION verify_links(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_hash_of(uuid, text, integer, bigint, bigint, bytea, bytea)
    TO behavry_audit_reader;
GRANT EXECUTE ON FUNCTION verify_links(text) TO behavry_audit_reader;
