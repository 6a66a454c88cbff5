//go:build race

package misuse

// underRace: the race detector, which makes calculations ten times slower and finds nothing in those of one goroutine. Tests
// of such take a sample under it, or are skipped; what they prove is proved without it.
const underRace = true
