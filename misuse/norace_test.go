//go:build !race

package misuse

const underRace = false
