-- Calls that wait for a person: the inbox, people's votes, the signed decisions on their way to the
-- plane. And what a person's session must say before it may approve.

-- Whether the only person of the tenant may approve what their own agent asks for.
ALTER TABLE tenants ADD COLUMN sole_operator boolean NOT NULL DEFAULT false;
-- So far the one tenant of a first start, run by whoever started it.
UPDATE tenants SET sole_operator = true;

-- A cookie's session is never a bearer token, nor the reverse.
ALTER TABLE user_sessions
    ADD COLUMN kind text NOT NULL DEFAULT 'browser' CHECK (kind IN ('browser', 'bearer')),
    -- When the password was last given; null: at the sign-in.
    ADD COLUMN stepped_up_at timestamptz;

DROP FUNCTION find_user_session(bytea);
CREATE FUNCTION find_user_session(wanted bytea)
RETURNS TABLE (
    tenant_id uuid, tenant_slug text, tenant_status text, user_id uuid, username text, role text,
    user_status text, kind text, created_at timestamptz, seen_at timestamptz,
    stepped_up_at timestamptz, ended_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.slug, t.status, u.id, u.username, u.role, u.status, s.kind,
           s.created_at, s.seen_at, coalesce(s.stepped_up_at, s.created_at), s.ended_at
    FROM user_sessions s
    JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id
    JOIN tenants t ON t.id = s.tenant_id
    WHERE s.token_sha256 = wanted
$$;
REVOKE ALL ON FUNCTION find_user_session(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_user_session(bytea) TO behavry_control;

CREATE TABLE escalations (
    -- The ticket's id in the plane that opened it.
    id                 uuid PRIMARY KEY,
    tenant_id          uuid NOT NULL REFERENCES tenants (id),
    plane_id           text NOT NULL,
    agent_id           uuid NOT NULL,
    agent_name         text NOT NULL,
    agent_class        text NOT NULL,
    requester_id       text NOT NULL,
    requester_verified boolean NOT NULL,
    server             text NOT NULL,
    tool               text NOT NULL,
    method             text NOT NULL,
    action             text NOT NULL,
    category           text NOT NULL,
    resource           text NOT NULL,
    resource_kind      text NOT NULL,
    codes              text[] NOT NULL,
    reason             text NOT NULL,
    policies           text[] NOT NULL,
    -- JSON as the plane sent it; bytea, because jsonb refuses NUL.
    features           bytea NOT NULL,
    finding_tags       text[] NOT NULL,
    binding            text NOT NULL,
    policy_revision    text NOT NULL,
    quorum             integer NOT NULL CHECK (quorum BETWEEN 1 AND 5),
    tier               text NOT NULL,
    opened_at          timestamptz NOT NULL,
    decide_by          timestamptz NOT NULL,
    execute_for_s      integer NOT NULL,
    state              text NOT NULL CHECK (state IN (
                           'pending', 'approved', 'denied', 'cancelled', 'expired', 'superseded',
                           'consumed', 'lapsed', 'revoked')),
    -- Of the last change that the plane reported.
    version            bigint NOT NULL,
    -- Of an approval: how often and until when it may be used, and what is left of it.
    uses               integer,
    uses_left          integer,
    execute_by         timestamptz,
    kept_at            timestamptz NOT NULL,
    changed_at         timestamptz NOT NULL,
    UNIQUE (tenant_id, id)
);
CREATE INDEX escalations_live ON escalations (tenant_id, decide_by)
    WHERE state IN ('pending', 'approved');
CREATE INDEX escalations_changed ON escalations (tenant_id, changed_at);

CREATE TABLE escalation_votes (
    tenant_id     uuid NOT NULL,
    escalation_id uuid NOT NULL,
    user_id       uuid NOT NULL,
    verdict       text NOT NULL CHECK (verdict IN ('approve', 'deny')),
    reason        text NOT NULL,
    uses          integer NOT NULL,
    execute_for_s integer NOT NULL,
    step_up       boolean NOT NULL,
    voted_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, escalation_id, user_id),
    FOREIGN KEY (tenant_id, escalation_id) REFERENCES escalations (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

CREATE TABLE escalation_decisions (
    -- The signal's id on the link.
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL,
    escalation_id uuid NOT NULL,
    plane_id      text NOT NULL,
    verdict       text NOT NULL CHECK (verdict IN ('approve', 'deny', 'revoke', 'cancel')),
    approvers     uuid[] NOT NULL,
    reason        text NOT NULL,
    jws           text NOT NULL,
    decided_at    timestamptz NOT NULL,
    -- When it need not be sent any more: acknowledged, or overtaken.
    done_at       timestamptz,
    FOREIGN KEY (tenant_id, escalation_id) REFERENCES escalations (tenant_id, id)
);
CREATE INDEX escalation_decisions_waiting ON escalation_decisions (plane_id, id)
    WHERE done_at IS NULL;
CREATE INDEX escalation_decisions_escalation
    ON escalation_decisions (tenant_id, escalation_id, id);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY[
        'escalations', 'escalation_votes', 'escalation_decisions'
    ] LOOP
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
-- What people decided is never taken out of the books.
REVOKE DELETE ON escalations, escalation_votes, escalation_decisions FROM behavry_control;

-- A link serves a plane, not a tenant: what waits for it is read across tenants, as the schema's
-- owner, by exact plane.
CREATE POLICY lookup ON escalation_decisions FOR SELECT TO behavry_control_owner USING (true);
CREATE FUNCTION waiting_decisions(wanted text)
RETURNS TABLE (id uuid, tenant_id uuid, escalation_id uuid, jws text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT d.id, d.tenant_id, d.escalation_id, d.jws
    FROM escalation_decisions d
    WHERE d.plane_id = wanted AND d.done_at IS NULL
    ORDER BY d.id
$$;
REVOKE ALL ON FUNCTION waiting_decisions(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION waiting_decisions(text) TO behavry_control;
