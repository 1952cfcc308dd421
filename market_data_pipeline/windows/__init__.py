"""Windows over event time: pure logic, no I/O, no clock of its own."""
