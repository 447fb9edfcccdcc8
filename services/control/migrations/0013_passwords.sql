-- Links that let somebody choose another password, once.

CREATE TABLE password_resets (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    user_id      uuid NOT NULL,
    token_sha256 bytea NOT NULL UNIQUE,
    -- Who made it; the person's own label where they asked for it by mail.
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    -- Another one took its place, or the password was changed otherwise.
    ended_at     timestamptz,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);
-- One open link per person.
CREATE UNIQUE INDEX password_resets_open ON password_resets (tenant_id, user_id)
    WHERE used_at IS NULL AND ended_at IS NULL;

ALTER TABLE password_resets ENABLE ROW LEVEL SECURITY;
ALTER TABLE password_resets FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON password_resets
    USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);

-- As in 0001: one row for one exact key.
CREATE POLICY lookup ON password_resets FOR SELECT TO behavry_control_owner USING (true);

CREATE FUNCTION find_password_reset(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text, reset_id uuid, user_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, r.id, r.user_id
    FROM password_resets r JOIN tenants t ON t.id = r.tenant_id
    WHERE r.token_sha256 = wanted
$$;

REVOKE ALL ON FUNCTION find_password_reset(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_password_reset(bytea) TO behavry_control;
