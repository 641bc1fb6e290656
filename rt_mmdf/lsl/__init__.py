"""The Lab Streaming Layer behind one small interface: the network, or memory with a manual clock."""
