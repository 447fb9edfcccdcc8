# Aggregates results: any deny > any intercept > any allow > deny by default.
# Whether each verdict is well-formed is judged by who reads the decision.
package behavry.lib.decision

strongest(results) := "deny" if {
	"deny" in results
} else := "intercept" if {
	"intercept" in results
} else := "allow" if {
	"allow" in results
} else := "deny"
