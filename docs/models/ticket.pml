/* The life of an escalation's ticket, as services/authorizer/tickets implements it (core.md 9).
 *
 * Two replicas of the authorizer share one durable store. Callers ask any of them, again and again;
 * people decide in control, whose message may come twice, late or never; both clocks run; the policy
 * may change under an open ticket; a replica may die between any two steps, an answer may be lost,
 * and a proxy may die between the intent and the run.
 *
 * Checked (make models):
 *   at most one run per approval, and none without one      assert in execute()
 *   no ticket stays open or approved for ever               ltl settles, weak fairness
 * Each seeded fault must be found:
 *   CONSUME_AFTER_INTENT  the approval is spent after the answer, not before it
 *   NO_COMPARE_AND_SET    looking at the state and writing it are two steps
 *   CLOCK_NOT_PERSISTED   the clocks live in the memory of the replica that opened the ticket
 */

#define REPLICAS 2
#define TICKETS  2   /* a ticket and the one that follows it */
#define CALLERS  2
#define NOWHERE  REPLICAS

mtype = { none, pending, approved, consumed, denied, expired, superseded, cancelled, lapsed };

/* The store. Survives every crash. */
mtype state = none;
byte ticket = 0;            /* number of the present ticket, from 1 */

/* Time, as seen by whoever holds the clocks of the present ticket. */
bool decide_is_over = false;
bool execute_is_over = false;

/* Which replica works for a caller, and whether it died over it. */
byte at[CALLERS] = NOWHERE;
bool lost[CALLERS];
#ifdef CLOCK_NOT_PERSISTED
bool knows_clock[REPLICAS];
#define HAS_CLOCK(r) knows_clock[r]
#else
#define HAS_CLOCK(r) true
#endif

/* What people said, kept by control until a plane has it. */
mtype said = none;          /* approved or denied */
byte said_of = 0;           /* which ticket it is about */

/* Counted for the properties alone. */
byte approvals[TICKETS + 1];
byte runs[TICKETS + 1];

#define LIVE  (state == pending || state == approved)

inline execute(t) {
    runs[t]++;
    assert(runs[t] <= approvals[t])
}

/* One call after another, for ever, each to any replica. */
proctype Caller(byte me)
{
    byte t;
    bool allowed;

ask:
    atomic {
        t = 0;
        allowed = false;
        lost[me] = false;
        if
        :: at[me] = 0
        :: at[me] = 1
        fi
    }

    /* Find the ticket of this call, or open one. Durable when it is done. */
    atomic {
        if
        :: lost[me] -> goto ask
        :: else -> skip
        fi;
        if
        :: !LIVE && ticket < TICKETS ->
            ticket++;
            state = pending;
            decide_is_over = false;
            execute_is_over = false;
#ifdef CLOCK_NOT_PERSISTED
            knows_clock[at[me]] = true
#endif
        :: else -> skip
        fi;
        t = ticket
    }

#if defined(NO_COMPARE_AND_SET)
    atomic {
        if
        :: lost[me] -> goto ask
        :: else -> allowed = (state == approved && ticket == t && !execute_is_over)
        fi
    }
    atomic {
        if
        :: lost[me] -> goto ask
        :: !lost[me] && allowed -> state = consumed
        :: else -> goto ask
        fi
    }
#elif defined(CONSUME_AFTER_INTENT)
    atomic {
        if
        :: lost[me] -> goto ask
        :: !lost[me] && state == approved && ticket == t && !execute_is_over -> allowed = true
        :: else -> goto ask
        fi
    }
#else
    /* Consume: one step, durable, before anybody hears of it. */
    atomic {
        if
        :: lost[me] -> goto ask
        :: !lost[me] && state == approved && ticket == t && !execute_is_over ->
            state = consumed;
            allowed = true
        :: else -> goto ask
        fi
    }
#endif

    /* The answer: sent by a living replica, and perhaps lost on its way. */
    atomic {
        if
        :: !lost[me] -> skip
        :: goto ask
        fi
    }

    /* The proxy has its intent on disk. It may die before it runs anything. */
    atomic {
        if
        :: execute(t)
        :: goto ask
        fi
    }

#ifdef CONSUME_AFTER_INTENT
    atomic {
        if
        :: !lost[me] && state == approved && ticket == t -> state = consumed
        :: else -> skip
        fi
    }
#endif
    goto ask
}

/* Somebody may decide on the present ticket, once; or nobody ever does. */
proctype People()
{
    do
    :: atomic { state == pending && said_of != ticket ->
           said_of = ticket;
           if
           :: said = approved
           :: said = denied
           fi }
    :: true -> break
    od
}

/* Control's decision reaches a replica, once, twice or never. The plane takes it for the ticket that
 * it names, while that is open and its time is not over.
 */
proctype Link()
{
    do
    :: atomic { said_of == ticket && state == pending && !decide_is_over ->
           state = said;
           if
           :: said == approved -> approvals[ticket]++
           :: else -> skip
           fi }
    :: true -> break
    od
}

/* The agent's person may give up; an admin may change the policy under the ticket. */
proctype Others()
{
    if
    :: atomic { state == pending -> state = cancelled }
    :: atomic { LIVE -> state = superseded }
    :: true -> skip
    fi
}

/* Time passes: no clock of a living ticket runs for ever. */
active proctype Time()
{
end:
    do
    :: atomic { state == pending && !decide_is_over -> decide_is_over = true }
    :: atomic { state == approved && !execute_is_over -> execute_is_over = true }
    od
}

/* Each replica ends what is over. */
active [REPLICAS] proctype Timer()
{
    byte r = _pid - 1;
end:
    do
    :: atomic { HAS_CLOCK(r) && state == pending && decide_is_over -> state = expired }
    :: atomic { HAS_CLOCK(r) && state == approved && execute_is_over -> state = lapsed }
    od
}

/* A replica dies and comes back, as often as it likes. What it was at is lost, the store is not. */
proctype Crashes()
{
    byte r;
    do
    :: atomic {
           if
           :: r = 0
           :: r = 1
           fi;
           lost[0] = lost[0] || at[0] == r;
           lost[1] = lost[1] || at[1] == r;
#ifdef CLOCK_NOT_PERSISTED
           knows_clock[r] = false;
#endif
           r = 0
       }
    :: true -> break
    od
}

init
{
    atomic {
        run Caller(0);
        run Caller(1);
        run People();
        run Link();
        run Others();
        run Crashes()
    }
}

ltl settles { [] <> !LIVE }
