// Package report answers what a security officer asks of a token service: what came from this token and how was it used
// ([Blast]), what ends soon and who has to be told ([ByOwner], [Announce]), which API keys are kept without need ([Hygiene]).
//
// Reports read the service's records and audit events. They know what those know: uses and used scopes are counted by
// processes with a store, not by validators without one, and reach the store within half a minute; scopes count as used where
// [apitoken.Authorize], and so every middleware of this module, asked for them; events that are purged (Config.KeepEvents) are
// not seen. Nothing here is on the path of a request, and nothing holds more than what its limit says, however many
// tokens there are.
package report
