-- What a repeated request is answered with: the first one's answer, kept for 24 hours.

CREATE TABLE idempotency (
    tenant_id      uuid NOT NULL REFERENCES tenants (id),
    principal      text NOT NULL,
    route          text NOT NULL,
    key            text NOT NULL,
    request_sha256 bytea NOT NULL,
    -- Null while the first request runs, and for good when control ended in its middle.
    status         integer,
    answer         bytea,
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, principal, route, key)
);

ALTER TABLE idempotency ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON idempotency
    USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
