-- Another way to sign in comes into force by three things: an admin's proposal, a super-admin's
-- approval and a sign-in that worked. And sign-ins of a device that has no browser (RFC 8628).

-- Since which revision what is in force is in force: a proposal is a revision too, and disturbs
-- nobody who is on the way.
ALTER TABLE auth_settings ADD COLUMN in_force bigint NOT NULL DEFAULT 0;

-- The one change that waits. Each of the other two is of these very settings.
CREATE TABLE auth_changes (
    tenant_id       uuid PRIMARY KEY REFERENCES tenants (id),
    id              uuid NOT NULL,
    document        jsonb NOT NULL,
    settings_sha256 bytea NOT NULL,
    proposed_by     uuid NOT NULL,
    proposed_at     timestamptz NOT NULL,
    approved_by     uuid,
    approved_at     timestamptz,
    approved_sha256 bytea,
    -- Nobody else was there who could have approved it.
    sole_operator   boolean NOT NULL DEFAULT false,
    tested_by       uuid,
    tested_at       timestamptz,
    tested_sha256   bytea,
    -- Why the last try did not work.
    test_failure    text,
    CONSTRAINT approved_by_another CHECK (approved_by <> proposed_by OR sole_operator)
);

-- A sign-in that only tries what is proposed: which change, and who tries it.
ALTER TABLE sign_in_transactions
    ADD COLUMN change_id uuid,
    ADD COLUMN tester    uuid;

-- Nobody's yet: whose it becomes, whoever approves it says. Of both codes the hash alone is kept.
CREATE TABLE device_requests (
    device_sha256    bytea PRIMARY KEY,
    user_code_sha256 bytea NOT NULL UNIQUE,
    client_ip        text NOT NULL,
    -- The approval has to come from somebody who has just proven who they are.
    step_up          boolean NOT NULL,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    interval_s       integer NOT NULL,
    polled_at        timestamptz
);
CREATE INDEX device_requests_end ON device_requests (expires_at);

-- What somebody said to it, once.
CREATE TABLE device_answers (
    device_sha256 bytea PRIMARY KEY REFERENCES device_requests (device_sha256) ON DELETE CASCADE,
    tenant_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    -- It ends with the session that it was given in.
    session_id    uuid NOT NULL,
    approved      boolean NOT NULL,
    answered_at   timestamptz NOT NULL,
    used_at       timestamptz,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY['auth_changes', 'device_answers'] LOOP
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

-- As in 0001: one row for one exact key.
CREATE POLICY lookup ON device_answers FOR SELECT TO behavry_control_owner USING (true);

CREATE FUNCTION find_device_answer(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text, approved boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, a.approved
    FROM device_answers a JOIN tenants t ON t.id = a.tenant_id
    WHERE a.device_sha256 = wanted
$$;

-- Super-admins are of any tenant; that there is one besides is all that is told of them.
CREATE FUNCTION is_super_admin(wanted uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT EXISTS (
        SELECT 1 FROM users WHERE id = wanted AND is_super_admin AND status = 'active')
$$;
CREATE FUNCTION has_super_admin_besides(known uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT EXISTS (
        SELECT 1 FROM users WHERE id <> known AND is_super_admin AND status = 'active')
$$;

-- As before; and where people sign in by a provider, an admin with a password stays for the day
-- that it is away.
CREATE OR REPLACE FUNCTION keep_last_admin() RETURNS trigger
LANGUAGE plpgsql SET search_path = control, pg_temp AS $$
BEGIN
    PERFORM 1 FROM tenants WHERE id = OLD.tenant_id FOR NO KEY UPDATE;
    IF NOT EXISTS (
        SELECT 1 FROM users
        WHERE tenant_id = OLD.tenant_id AND id <> OLD.id AND role = 'admin' AND status = 'active'
    ) OR (
        OLD.password_hash IS NOT NULL
        AND EXISTS (
            SELECT 1 FROM auth_settings WHERE tenant_id = OLD.tenant_id AND provider <> 'password')
        AND NOT EXISTS (
            SELECT 1 FROM users
            WHERE tenant_id = OLD.tenant_id AND id <> OLD.id AND role = 'admin'
              AND status = 'active' AND password_hash IS NOT NULL)
    ) THEN
        RAISE EXCEPTION 'the last admin' USING ERRCODE = '23514', CONSTRAINT = 'last_admin';
    END IF;
    RETURN NEW;
END $$;

REVOKE ALL ON FUNCTION find_device_answer(bytea), is_super_admin(uuid),
    has_super_admin_besides(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_device_answer(bytea), is_super_admin(uuid),
    has_super_admin_besides(uuid) TO behavry_control;
