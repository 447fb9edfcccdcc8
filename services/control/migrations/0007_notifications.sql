-- Where people outside are told that something waits, and each notice on its way there.

CREATE TABLE notification_destinations (
    id                uuid PRIMARY KEY,
    tenant_id         uuid NOT NULL REFERENCES tenants (id),
    name              text NOT NULL,
    kind              text NOT NULL CHECK (kind IN ('email', 'webhook', 'slack', 'pagerduty')),
    -- What is secret in it is a reference, `secret://name`.
    settings          jsonb NOT NULL,
    events            text[] NOT NULL,
    enabled           boolean NOT NULL,
    revision          bigint NOT NULL,
    created_at        timestamptz NOT NULL,
    -- What the newest attempts said; no part of the revision. Null: it works, as far as we know.
    failing_since     timestamptz,
    last_error        text NOT NULL DEFAULT '',
    last_delivered_at timestamptz,
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE TABLE notification_deliveries (
    -- The notice's id, the same in every attempt.
    id             uuid PRIMARY KEY,
    tenant_id      uuid NOT NULL,
    destination_id uuid NOT NULL,
    event          text NOT NULL,
    -- The escalation or the kill switch.
    subject_id     uuid NOT NULL,
    -- The facts when it was planned.
    content        jsonb NOT NULL,
    -- failed: refused for good; given_up: its time was over; dropped: there was nothing left to tell.
    state          text NOT NULL
                   CHECK (state IN ('queued', 'delivered', 'failed', 'given_up', 'dropped')),
    attempts       integer NOT NULL,
    planned_at     timestamptz NOT NULL,
    next_at        timestamptz NOT NULL,
    give_up_at     timestamptz NOT NULL,
    delivered_at   timestamptz,
    last_error     text NOT NULL,
    -- The same event told again is the same notice.
    UNIQUE (tenant_id, destination_id, event, subject_id),
    FOREIGN KEY (tenant_id, destination_id)
        REFERENCES notification_destinations (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX notification_deliveries_waiting ON notification_deliveries (next_at)
    WHERE state = 'queued';
CREATE INDEX notification_deliveries_subject ON notification_deliveries (tenant_id, subject_id);
CREATE INDEX notification_deliveries_listed
    ON notification_deliveries (tenant_id, destination_id, id);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY['notification_destinations', 'notification_deliveries'] LOOP
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

-- One worker serves all tenants: it learns as the schema's owner which notices are due, by their
-- ids alone, and reads and changes each in its own tenant.
CREATE POLICY lookup ON notification_deliveries FOR SELECT TO behavry_control_owner USING (true);

-- At most so many of each destination, so that one that is slow holds up no other; of one subject
-- in the order in which it happened, so that no end is told before its beginning.
CREATE FUNCTION due_notifications(at timestamptz, of_each integer, at_most integer)
RETURNS TABLE (tenant_id uuid, id uuid, destination_id uuid, subject_id uuid, attempts integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT q.tenant_id, q.id, q.destination_id, q.subject_id, q.attempts
    FROM (
        SELECT d.*, row_number() OVER (
            PARTITION BY d.destination_id ORDER BY d.next_at, d.id) AS place
        FROM notification_deliveries d
        WHERE d.state = 'queued' AND d.next_at <= at AND NOT EXISTS (
            SELECT 1 FROM notification_deliveries o
            WHERE o.tenant_id = d.tenant_id AND o.subject_id = d.subject_id
              AND o.destination_id = d.destination_id AND o.state = 'queued'
              AND o.planned_at < d.planned_at)
    ) q
    WHERE q.place <= of_each
    ORDER BY q.next_at, q.id
    LIMIT at_most
$$;

CREATE FUNCTION next_notification(after timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT min(d.next_at) FROM notification_deliveries d
    WHERE d.state = 'queued' AND d.next_at > after
$$;

REVOKE ALL ON FUNCTION due_notifications(timestamptz, integer, integer),
    next_notification(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION due_notifications(timestamptz, integer, integer),
    next_notification(timestamptz) TO behavry_control;
