-- Plans that people set, overrides, licences, and what the watch needs. Times are whole Unix seconds.

ALTER TABLE installation
    -- What licences are bound to: a random id, nothing of the machine.
    ADD COLUMN installation_id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- No tenant's revision counts as lower: raised by what concerns all of them.
    ADD COLUMN base_revision   bigint NOT NULL DEFAULT 0,
    -- The latest that any clock has been: time does not go back behind it.
    ADD COLUMN clock_mark_s    bigint NOT NULL DEFAULT 0,
    -- Which ceiling `base_revision` was raised for.
    ADD COLUMN ceiling         text NOT NULL DEFAULT '',
    -- On which server, in which of its lives, this database was seen last.
    ADD COLUMN server          text NOT NULL DEFAULT '';

ALTER TABLE directory
    ADD COLUMN revision   bigint NOT NULL DEFAULT 0,
    ADD COLUMN deleted_at timestamptz;
CREATE INDEX directory_revision ON directory (revision);
UPDATE directory SET revision = (SELECT revision FROM installation);

ALTER TABLE tenants
    ADD COLUMN plan_set_at_s bigint NOT NULL DEFAULT 0,
    -- Up to when changes by time have been told.
    ADD COLUMN settled_at_s  bigint NOT NULL DEFAULT 0,
    -- Every feature that the tenant has had at some time; it only grows.
    ADD COLUMN entitled      text[] NOT NULL DEFAULT '{}';

CREATE TABLE plan_history (
    tenant_id    uuid NOT NULL REFERENCES directory (id),
    seq          bigint GENERATED ALWAYS AS IDENTITY,
    plan         text NOT NULL,
    expires_at_s bigint,
    actor        text NOT NULL,
    reason       text NOT NULL,
    request_id   text NOT NULL,
    created_at_s bigint NOT NULL,
    revision     bigint NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);

CREATE TABLE overrides (
    tenant_id    uuid NOT NULL REFERENCES directory (id),
    seq          bigint GENERATED ALWAYS AS IDENTITY,
    id           uuid NOT NULL,
    feature      text NOT NULL,
    effect       text NOT NULL CHECK (effect IN ('enable', 'disable', 'clear')),
    starts_at_s  bigint NOT NULL,
    ends_at_s    bigint,
    actor        text NOT NULL,
    reason       text NOT NULL,
    request_id   text NOT NULL,
    created_at_s bigint NOT NULL,
    revision     bigint NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);

-- History is added to and never changed, not even by us.
REVOKE UPDATE, DELETE, TRUNCATE ON overrides, plan_history FROM behavry_entitlements;

-- Raw tokens and nothing that was read from them: each load verifies again.
CREATE TABLE licenses (
    tenant_id      uuid NOT NULL REFERENCES directory (id),
    token_sha256   text NOT NULL,
    token          text NOT NULL,
    activated_at_s bigint NOT NULL,
    removed        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, token_sha256)
);

CREATE TABLE installation_licenses (
    token_sha256   text PRIMARY KEY,
    token          text NOT NULL,
    activated_at_s bigint NOT NULL,
    removed        boolean NOT NULL DEFAULT false
);

CREATE TABLE revocation_lists (
    serial       bigint PRIMARY KEY,
    token        text NOT NULL,
    stored_at_s  bigint NOT NULL
);

-- The same request within a day is answered as it was the first time.
CREATE TABLE requests (
    tenant_id    uuid NOT NULL REFERENCES directory (id),
    request_id   text NOT NULL,
    asked        bytea NOT NULL,
    answer       bytea NOT NULL,
    created_at_s bigint NOT NULL,
    PRIMARY KEY (tenant_id, request_id)
);

DO $$
DECLARE
    one text;
BEGIN
    FOREACH one IN ARRAY ARRAY['plan_history', 'overrides', 'licenses', 'requests'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', one);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', one);
        EXECUTE format(
            'CREATE POLICY one_tenant ON %I
                USING (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)
                WITH CHECK (
                    tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)',
            one);
    END LOOP;
END $$;

-- What answers are made of, of many tenants in one statement: each tenant's rows are read with that
-- tenant set, so row-level security judges every one of them. Overrides: those that count at `at_s`
-- and the ones that wait.
CREATE FUNCTION states(wanted uuid[], at_s bigint)
RETURNS TABLE (
    id uuid, deleted boolean, revision bigint, plan text, plan_expires_at timestamptz,
    plan_set_at_s bigint, settled_at_s bigint, entitled text[], overrides jsonb, licenses jsonb
) LANGUAGE plpgsql AS $$
DECLARE
    one record;
    before text := current_setting('behavry.tenant_id', true);
BEGIN
    FOR one IN
        SELECT d.id, d.deleted_at IS NOT NULL AS deleted, d.revision
        FROM entitlements.directory d WHERE d.id = ANY (wanted)
    LOOP
        PERFORM set_config('behavry.tenant_id', one.id::text, true);
        RETURN QUERY
            SELECT one.id, one.deleted, greatest(one.revision, t.revision), t.plan,
                   t.plan_expires_at, t.plan_set_at_s, t.settled_at_s, t.entitled,
                   (SELECT jsonb_agg(jsonb_build_array(
                               o.seq, o.feature, o.effect, o.starts_at_s, o.ends_at_s))
                    FROM entitlements.overrides o
                    WHERE o.tenant_id = one.id AND o.seq >= coalesce(
                        (SELECT max(p.seq) FROM entitlements.overrides p
                         WHERE p.tenant_id = one.id AND p.feature = o.feature
                           AND p.starts_at_s <= at_s), 0)),
                   (SELECT jsonb_agg(jsonb_build_array(l.token, l.activated_at_s))
                    FROM entitlements.licenses l
                    WHERE l.tenant_id = one.id AND NOT l.removed)
            FROM entitlements.tenants t WHERE t.tenant_id = one.id;
    END LOOP;
    PERFORM set_config('behavry.tenant_id', coalesce(before, ''), true);
END $$;

-- Says that changes by time have come, and remembers features that were gained: one revision for
-- all tenants named. `changes` is [{"id", "due", "entitled"}]; whoever is settled already is left.
CREATE FUNCTION settle(changes jsonb, at_s bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    one record;
    raised bigint;
    before text := current_setting('behavry.tenant_id', true);
BEGIN
    UPDATE entitlements.installation i
    SET revision = i.revision + 1, clock_mark_s = greatest(i.clock_mark_s, at_s)
    RETURNING i.revision INTO raised;
    FOR one IN
        SELECT * FROM jsonb_to_recordset(changes) AS c(id uuid, due bigint, entitled text[])
    LOOP
        PERFORM set_config('behavry.tenant_id', one.id::text, true);
        UPDATE entitlements.tenants t
        SET revision = raised, settled_at_s = greatest(t.settled_at_s, at_s),
            entitled = ARRAY(SELECT DISTINCT f FROM unnest(t.entitled || one.entitled) f ORDER BY f)
        WHERE t.tenant_id = one.id
          AND (t.settled_at_s < one.due OR NOT t.entitled @> one.entitled);
        IF FOUND THEN
            UPDATE entitlements.directory d SET revision = raised WHERE d.id = one.id;
        END IF;
    END LOOP;
    PERFORM set_config('behavry.tenant_id', coalesce(before, ''), true);
    RETURN raised;
END $$;
