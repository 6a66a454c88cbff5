// Package misuse watches how the tokens of a service are used, and acts by the host's policy.
//
//	[Start]               attaches detectors to a service; each finding becomes an alert in its audit log
//	[Config].Policy       a few lines of the host's that answer an alert: [Tell], [RevokeToken], [RevokeGrant], [RevokeSubject]
//	[NewScannerHandler]   takes reports of leaked tokens from a secret scanner, in GitHub's signed format
//	[Find]                finds tokens in a text: for log shippers and commit hooks
//	[NewPresentHandler]   lets whoever holds a token revoke it by presenting it
//
// # What is watched, and when it alerts
//
//	reuse             a spent refresh token or ticket came again (the service has revoked its grant by then)
//	after-revocation  a revoked token is still used:                        10 times within Window
//	addresses         one token from many networks (IPv4 /24, IPv6 /48):    6 within Window; of machines 32
//	user-agents       one person's token by two programs at once:           3 changes back within Window
//	scope-probing     a good token that asks for what it does not cover:    50 times within Window,
//	                                                                        or by 8 different requirements
//	client-failures   a client's failed authentications:                    20 within Window
//	unknown-tokens    unknown or malformed tokens from one source
//	                  (IPv4 address, IPv6 /64):                             200 within Window
//	rise              a client's calls in five minutes against its usual
//	                  highest, of a day and of a week:                      8 times as many, and 1,000 at least
//	canary            a token that is planted to be stolen is used:         once
//
// Addresses and user agents are those of [apitoken.WithOrigin], which httpauth sets: where nothing does, their detectors
// see nothing. Window is ten minutes, kept as two halves, so that a count reaches over five to ten minutes. All figures are
// fields of [Config]. What one detector says of one token, client or source it says once an hour (Config.Quiet).
//
// rise needs to know a client for a day before it judges, because the night says nothing of the morning: a process that
// was started today has no usual rates yet.
//
// reuse comes from the event feed and covers the whole fleet; of several processes one gets it. All others see what their
// own process validates: each process runs its own Watch.
//
// # What it costs
//
// A token that was seen before, at the same place, is a hash, two loads, and one in eight times a count: 25 ns on two
// cores, where a bare shared counter takes 20. A request with a good token waits for no lock, one that is refused for a few
// compares under one, and none for a store or the policy.
//
// Memory is bounded, whatever comes in; [Watch.Stats] tells what is held. With a million tokens the detectors of addresses
// and user agents hold 48 MiB together (48 bytes a token), those that count refusals 2 MiB each, rise 6 MiB, reuse and
// canary 2 MiB each: the tests measure it.
//
// # What it never does
//
// It never revokes on evidence that can be made without an authentic credential, whatever the policy answers: anybody can
// send a thousand wrong secrets in a client's name. [Alert].Authentic tells the two apart.
package misuse
