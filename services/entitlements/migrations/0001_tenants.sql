-- Ids only: what a watcher walks through; a tenant's own row is read with that tenant set.
CREATE TABLE directory (
    id         uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row: `epoch` names this database's life, `revision` rises with every change.
CREATE TABLE installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    uuid NOT NULL DEFAULT gen_random_uuid(),
    revision bigint NOT NULL DEFAULT 0
);
INSERT INTO installation DEFAULT VALUES;

CREATE TABLE tenants (
    tenant_id       uuid PRIMARY KEY REFERENCES directory (id),
    slug            text NOT NULL,
    plan            text NOT NULL,
    plan_expires_at timestamptz,
    created_at      timestamptz NOT NULL,
    revision        bigint NOT NULL
);

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON tenants
    USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
