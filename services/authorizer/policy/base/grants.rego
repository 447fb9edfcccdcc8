# Allows what the agent's roles grant: a permission names `<domain>:<action>`, either part may be `*`.
package behavry.base.grants

verdicts contains {
	"result": "allow",
	"code": "granted",
	"reason": "a role of the agent grants this",
	"obligations": [],
} if {
	input.request.action != "unclassified"
	some permission in input.agent.permissions
	permission in covering
}

covering := {
	concat(":", [input.request.domain, input.request.action]),
	concat(":", [input.request.domain, "*"]),
	concat(":", ["*", input.request.action]),
	"*:*",
}
