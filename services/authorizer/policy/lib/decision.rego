# Aggregates the verdicts of a tenant's policies: any deny > any intercept > any allow > default_deny.
# One module for both engines. Takes [[policy, verdicts], ...]; which policies those are is the generated package's work.
package behavry.lib.decision

# The lower, the stronger.
strength := {"deny": 0, "intercept": 1, "allow": 2}

# A verdict with a missing key, another key or an unknown result yields no row, which the count below notices.
rows(tagged) := [[strength[v.result], policy, v.code, v.reason, v.obligations] |
	some [policy, verdicts] in tagged
	some v in verdicts
	count(v) == 4
	is_array(v.obligations)
]

merge(tagged) := outcome(sort(rows(tagged)), sum([count(verdicts) | some [_, verdicts] in tagged]))

outcome(ranked, given) := {"result": "invalid"} if count(ranked) != given

outcome([], 0) := {
	"result": "deny",
	"reason_code": "default_deny",
	"reason": "no policy allows this call",
	"policies": [],
	"codes": ["default_deny"],
	"obligations": [],
}

outcome(ranked, given) := {
	"result": named[ranked[0][0]],
	"reason_code": ranked[0][2],
	"reason": ranked[0][3],
	"policies": [row[1] | some row in ranked; row[0] <= weakest],
	"codes": [row[2] | some row in ranked; row[0] <= weakest],
	"obligations": [o | some row in ranked; some o in row[4]],
} if {
	given > 0
	count(ranked) == given
	weakest := listed[ranked[0][0]]
}

named := ["deny", "intercept", "allow"]

# How far down the reasons of a result go: a denial also names what would have been intercepted, never what allowed.
listed := [1, 1, 2]

# What policies in shadow would have said. One that answers nonsense is left out: it never counts.
observe(tagged) := [{"policy": policy, "result": v.result, "code": v.code} |
	some [policy, verdicts] in tagged
	some v in verdicts
	strength[v.result]
	is_string(v.code)
]
