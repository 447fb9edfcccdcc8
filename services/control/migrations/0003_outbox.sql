-- The table outbox: records written in the transaction of the change that they report.
-- Runs inside the migrations of the schema that owns it.

CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    chain        text NOT NULL,
    event_id     uuid NOT NULL UNIQUE,
    -- The body without `src`, which is known when the shipper numbers the committed row.
    draft        bytea NOT NULL,
    boot         uuid,
    n            bigint,
    pos          bigint UNIQUE,
    -- StoredRecord bytes, kept so that a repetition sends the same.
    stored       bytea,
    committed_at timestamptz,
    CONSTRAINT outbox_numbered CHECK (num_nulls(boot, n, pos, stored) IN (0, 4))
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE pos IS NULL;
CREATE INDEX outbox_committed ON outbox (committed_at) WHERE committed_at IS NOT NULL;

ALTER TABLE outbox ENABLE ROW LEVEL SECURITY;
ALTER TABLE outbox FORCE ROW LEVEL SECURITY;
-- A tenant's transaction adds its records and can change or remove none.
CREATE POLICY outbox_write ON outbox FOR INSERT
    WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
CREATE POLICY outbox_read ON outbox FOR SELECT
    USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
-- The shipper says so on its own connection; it sees and numbers everybody's.
CREATE POLICY outbox_ship ON outbox
    USING (current_setting('behavry.outbox_shipper', true) = 'on')
    WITH CHECK (current_setting('behavry.outbox_shipper', true) = 'on');

-- One row: the source's stable id, its present boot, the last position given out.
CREATE TABLE outbox_source (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    source   uuid NOT NULL,
    boot     uuid,
    pos      bigint NOT NULL DEFAULT 0
);
