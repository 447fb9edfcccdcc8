-- Policies with their immutable versions, and the bundles that were built from all desired state.

CREATE TABLE policies (
    id             uuid PRIMARY KEY,
    tenant_id      uuid NOT NULL REFERENCES tenants (id),
    key            text NOT NULL CHECK (key ~ '^[a-z][a-z0-9_]{0,62}$'),
    state          text NOT NULL CHECK (state IN ('draft', 'shadow', 'enforce', 'retired')),
    latest_version integer NOT NULL,
    -- The version that takes part in decisions; null in draft and retired.
    active_version integer,
    revision       bigint NOT NULL,
    created_at     timestamptz NOT NULL,
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, key)
);

CREATE TABLE policy_versions (
    tenant_id  uuid NOT NULL,
    policy_id  uuid NOT NULL,
    version    integer NOT NULL,
    source     text NOT NULL,
    -- [{name, input, expect}]
    tests      jsonb NOT NULL,
    -- Input paths that the policy reads, and what must hold before it can say anything.
    reads      jsonb NOT NULL,
    guards     jsonb,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, policy_id, version),
    FOREIGN KEY (tenant_id, policy_id) REFERENCES policies (tenant_id, id)
);
-- A version is what was decided under: it never changes.
REVOKE UPDATE, DELETE ON policy_versions FROM behavry_control;

-- Whole planes, not tenants: no tenant_id. The archive is what planes fetch.
CREATE TABLE bundles (
    plane_id       text NOT NULL,
    serial         bigint NOT NULL,
    content_digest text NOT NULL,
    etag           text NOT NULL,
    archive        bytea NOT NULL,
    created_at     timestamptz NOT NULL,
    not_after      timestamptz NOT NULL,
    PRIMARY KEY (plane_id, serial)
);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY['policies', 'policy_versions'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', isolated);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', isolated);
        EXECUTE format(
            'CREATE POLICY own_tenant ON %I
                 USING (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)
                 WITH CHECK
                     (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)',
            isolated);
    END LOOP;
END $$;
