-- Records, their chains, and how far each source has been stored.
--
-- Times are whole microseconds since 1970 UTC: databases round their own times, and what is hashed
-- must come back as it went in. Every table with a tenant_id is under forced row-level security;
-- without a tenant setting nothing is seen and nothing can be written. Nobody may UPDATE or DELETE
-- what is recorded: no role below has the right, and the owner cannot log in.

-- One row per record. `body` is stored as its source made it and is what the hash covers; the
-- columns after `event_hash` are derived from it for filters, never the reverse.
-- Partitions by day come with retention; until then every row lies in the default partition, so
-- that they can come without rewriting the table.
CREATE TABLE events (
    tenant_id     uuid    NOT NULL,
    chain         text    NOT NULL,
    incarnation   integer NOT NULL CHECK (incarnation >= 1),
    seq           bigint  NOT NULL CHECK (seq >= 1),
    committed_at  bigint  NOT NULL,
    txid          xid8    NOT NULL DEFAULT pg_current_xact_id(),
    position      integer NOT NULL,
    event_id      uuid    NOT NULL,
    body          bytea   NOT NULL,
    previous_hash bytea   NOT NULL CHECK (length(previous_hash) = 32),
    event_hash    bytea   NOT NULL CHECK (length(event_hash) = 32),
    type          text    NOT NULL,
    decision      uuid,
    agent         text,
    agent_name    text,
    session       text,
    server        text,
    tool          text,
    action        text,
    verdict       text,
    reason        text,
    PRIMARY KEY (tenant_id, chain, incarnation, seq, committed_at)
) PARTITION BY RANGE (committed_at);

-- Rows stay whole and uncompressed up to a page: compressing them cost more than storing them.
CREATE TABLE events_default PARTITION OF events DEFAULT WITH (toast_tuple_target = 8160);

-- Was this record stored (once-only), and where is it? Ids begin with their time (UUIDv7), so the
-- same index lists newest first.
CREATE INDEX events_by_id ON events (tenant_id, event_id);
-- What belongs to a decision, beside the record that is its own.
CREATE INDEX events_by_decision ON events (tenant_id, decision) WHERE decision IS NOT NULL;

-- What may be purged later without breaking a chain; the record holds a salted commitment to it.
CREATE TABLE parts (
    tenant_id uuid  NOT NULL,
    event_id  uuid  NOT NULL,
    kind      text  NOT NULL CHECK (kind IN ('arguments', 'result', 'input', 'quarantine')),
    salt      bytea NOT NULL CHECK (length(salt) = 32),
    stored    bytea NOT NULL,
    mode      text  NOT NULL CHECK (mode IN ('full', 'redacted', 'encrypted', 'input')),
    PRIMARY KEY (tenant_id, event_id, kind)
) WITH (toast_tuple_target = 8160);

-- The end of each chain. A writer moves it only from the end that it linked to.
CREATE TABLE chain_heads (
    tenant_id    uuid    NOT NULL,
    chain        text    NOT NULL,
    incarnation  integer NOT NULL,
    seq          bigint  NOT NULL,
    event_hash   bytea   NOT NULL,
    committed_at bigint  NOT NULL,
    PRIMARY KEY (tenant_id, chain)
) WITH (fillfactor = 50);

-- What decides whether a record is new: the highest number stored per source, start and tenant.
CREATE TABLE source_marks (
    tenant_id uuid   NOT NULL,
    source    uuid   NOT NULL,
    boot      uuid   NOT NULL,
    n         bigint NOT NULL,
    PRIMARY KEY (tenant_id, source, boot)
) WITH (fillfactor = 50);

-- Records that could not be taken. Their numbers count as stored: one must not stop its outbox.
CREATE TABLE rejected_records (
    tenant_id   uuid   NOT NULL,
    source      uuid   NOT NULL,
    boot        uuid   NOT NULL,
    n           bigint NOT NULL,
    body_sha256 bytea  NOT NULL,
    peer        text   NOT NULL,
    reason      text   NOT NULL,
    body        bytea  NOT NULL,
    rejected_at bigint NOT NULL,
    PRIMARY KEY (tenant_id, source, boot, n, body_sha256)
);

-- Without a tenant, because one outbox carries many: which peer opened a source, and from where it
-- is to resend. The position may lag behind what is stored and never leads.
CREATE TABLE sources (
    source    uuid PRIMARY KEY,
    peer      text   NOT NULL,
    opened_at bigint NOT NULL
);

CREATE TABLE source_positions (
    source uuid PRIMARY KEY,
    boot   uuid   NOT NULL,
    pos    bigint NOT NULL
) WITH (fillfactor = 50);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['events', 'events_default', 'parts', 'chain_heads',
                                'source_marks', 'rejected_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON %I '
            'USING (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid) '
            'WITH CHECK '
            '(tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)',
            name);
    END LOOP;
END $$;

GRANT INSERT, SELECT ON events, parts TO behavry_audit_writer;
GRANT INSERT, SELECT, UPDATE ON chain_heads, source_marks, source_positions TO behavry_audit_writer;
GRANT INSERT, SELECT ON sources TO behavry_audit_writer;
GRANT INSERT ON rejected_records TO behavry_audit_writer;
GRANT SELECT ON events, parts, chain_heads, source_marks, source_positions, sources,
    rejected_records TO behavry_audit_reader;
